import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.attacks.inverted import Inverted  # noqa: E402
from calibration.scan.behaviour import (  # noqa: E402
    as_attack,
    as_found,
    patch_facts,
    predictions,
    success_by_class,
    turned,
)
from calibration.scan.inversion import Aim, Inversion, InversionPlan  # noqa: E402
from calibration.scan.state import State  # noqa: E402
from tests.calibration.backdoored_nets import CLASSES, TARGET  # noqa: E402
from tests.calibration.scan_subjects import corner_bench  # noqa: E402

BENCH = corner_bench()


def corner(target: int = TARGET) -> Inverted:
    mask = np.zeros((1, 8, 8), np.float32)
    mask[:, -2:, -2:] = 1
    return Inverted(target, None, mask, np.ones((1, 8, 8), np.float32))


def test_a_bright_corner_turns_every_class() -> None:
    rates = success_by_class(BENCH, corner(), turned(BENCH, corner()))
    assert rates.tolist() == [1.0] * CLASSES
    without = predictions(BENCH, BENCH.held.images)
    assert (without == BENCH.held.labels.numpy()).mean() > 0.9


def test_a_class_without_images_has_no_rate() -> None:
    bench = corner_bench(count=3)  # classes 0, 1 and 2
    rates = success_by_class(bench, corner(), turned(bench, corner()))
    assert np.isnan(rates).tolist() == [False, False, False, True, True]


# Four pixels of equal weight: nine tenths need all four, their centre lies between rows 6 and 7.
def test_where_a_patch_lies() -> None:
    facts = patch_facts(corner())
    assert facts == {"centre_row": 6.5, "centre_column": 6.5, "pixels_of_nine_tenths": 4.0}
    assert patch_facts(Inverted(0, addition=np.zeros((1, 8, 8), np.float32))) == {}


def test_pictures_are_of_the_whole_range_and_of_other_classes() -> None:
    found = as_found(corner(), Aim(TARGET), BENCH, form="patch", asr=1.0, size=4.0)
    assert found.before.shape == found.after.shape == (6, 8, 8, 1)
    assert found.after[:, -2:, -2:].min() == 255
    others = BENCH.held.images[BENCH.held.labels != TARGET][:6].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(found.before, np.rint(others.clip(0, 1) * 255))


@pytest.mark.parametrize("form", ["patch", "addition", "waves", "warp"])
def test_the_attack_does_what_the_search_measured(form: str) -> None:
    plan, aims = InversionPlan(form, batch=8, precision="float32"), (Aim(0), Aim(TARGET, 1))
    arrays = Inversion(plan, aims, 20, 0, judge=True).run(BENCH)
    for row, aim in enumerate(aims):
        attack = as_attack(form, State.from_arrays(arrays), row, aim, BENCH)
        rows = attack.applies_to(BENCH.held.labels.numpy())
        rate = (turned(BENCH, attack) == aim.target)[rows].mean()
        assert rate == pytest.approx(arrays["asr"][row], abs=0.03)
