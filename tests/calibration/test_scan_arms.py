import numpy as np
import pytest

from calibration.scan.arms import Rung, rungs, survivors


def cost(aims: int) -> int:
    return sum(one.aims * one.steps * one.batch for one in rungs(aims, 300, 16, finalists=8, reference=12))


def test_of_few_aims_every_one_is_searched_to_the_end() -> None:
    for aims in (1, 10, 20):
        assert rungs(aims, 300, 16, finalists=8, reference=12) == (Rung(aims, 300, 16),)


@pytest.mark.parametrize("aims", [21, 43, 200, 1000])
@pytest.mark.parametrize("steps", [1, 30, 31, 100, 300])
@pytest.mark.parametrize(("finalists", "reference"), [(8, 12), (1, 1)])
def test_stretches_add_up_and_aims_never_come_back(
    aims: int, steps: int, finalists: int, reference: int
) -> None:
    found = rungs(aims, steps, 16, finalists=finalists, reference=reference)
    counts = [rung.aims for rung in found]
    assert sum(rung.steps for rung in found) == steps
    assert min(rung.steps for rung in found) >= 1
    assert counts[0] == aims
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= finalists + reference


def test_a_thousand_labels_cost_little_more_than_a_few() -> None:
    assert cost(1000) < 0.15 * 1000 * 300 * 16
    assert cost(1000) < 10 * cost(20)


def test_the_sample_survives_and_of_the_others_the_likeliest() -> None:
    sizes = np.array([9.0, 8.0, 7.0, 1.0, 2.0, np.nan])
    losses = np.array([1.0, 1.0, 1.0, 0.5, 0.1, np.nan])
    won = np.array([True, True, True, False, False, False])
    assert survivors(sizes, losses, won, [5, 0], 2) == [0, 5]
    assert survivors(sizes, losses, won, [5, 0], 4) == [0, 1, 2, 5]
    assert survivors(sizes, losses, won, [5, 0], 5) == [0, 1, 2, 4, 5]
    assert survivors(sizes, losses, won, [5, 0], 1) == [0, 5]
