import numpy as np
import pytest
from scipy.stats import t as student

from calibration.scan.evidence import Prior, anomaly_indices, p_values, ratios

PRIOR = Prior(0.2, 8.0)


def everyone(sizes: np.ndarray) -> np.ndarray:
    return np.ones(len(sizes), bool)


# By hand: others' logs 0, 1, 2, 3, 4; median 2; above it 0, 1, 4 with mean 5/3; d = 5/2.
def test_a_small_case_worked_by_hand() -> None:
    sizes = np.exp([-1.0, 0, 1, 2, 3, 4])
    spread = (8 * 0.04 + 2.5 * 5 / 3) / 10.5
    expected = 6 * student.sf(3 / spread**0.5, 10.5)
    assert p_values(sizes, everyone(sizes), 6, PRIOR)[0] == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.0026334, rel=1e-4)  # by numerical integration of the density


@pytest.mark.parametrize("labels", [10, 43, 200])
def test_clean_models_are_called_backdoored_no_more_often_than_asked(labels: int) -> None:
    generator = np.random.default_rng(labels)
    least = []
    for _ in range(800):
        sizes = np.exp(generator.normal(3, 0.2, labels))
        alone = np.arange(labels) == sizes.argmin()  # the smallest has the smallest chance
        row = int(sizes.argmin())
        few = np.concatenate([sizes[alone], sizes[~alone]])
        least.append(_first(few, labels))
        assert few[0] == sizes[row]
    for alpha in (0.01, 0.05):
        noise = 3 * (alpha / 800) ** 0.5
        assert np.mean(np.array(least) <= alpha) <= 1.5 * alpha + noise


def _first(sizes: np.ndarray, looked_at: int) -> float:
    """The chance of the first alone: the others are asked about as if they were no reference."""
    from calibration.scan.evidence import _tail

    return min(1.0, looked_at * _tail(float(np.log(sizes[0])), np.log(sizes[1:]), PRIOR))


def test_the_smaller_the_less_likely() -> None:
    rest = np.exp(np.random.default_rng(0).normal(3, 0.2, 9))
    chances = [
        p_values(np.array([size, *rest]), np.ones(10, bool), 10, PRIOR)[0] for size in (20.0, 10.0, 5.0, 1.0)
    ]
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 1e-5


def test_the_unit_of_sizes_does_not_matter() -> None:
    sizes = np.exp(np.random.default_rng(0).normal(3, 0.4, 12))
    for measure in (lambda s: p_values(s, everyone(s), 12, PRIOR), lambda s: ratios(s, everyone(s))):
        np.testing.assert_allclose(measure(sizes), measure(37 * sizes), rtol=1e-9)


def test_backdoors_do_not_widen_what_they_are_measured_by() -> None:
    sizes = np.array([1.0, 1, 9, 10, 11, 12, 13, 10, 11, 10])
    further = sizes.copy()
    further[1] = 1e-6
    first, second = (p_values(one, everyone(one), 10, PRIOR)[0] for one in (sizes, further))
    assert first == pytest.approx(second)
    assert first < 1e-3


def test_with_fewer_than_two_others_there_is_no_evidence() -> None:
    sizes = np.array([1e-6, 10.0, 11.0])
    assert p_values(sizes, np.array([True, True, False]), 3, PRIOR).tolist()[:2] == [1.0, 1.0]
    assert p_values(sizes, everyone(sizes), 3, PRIOR)[0] < 1e-3


def test_a_label_chosen_for_its_size_says_nothing_of_what_is_usual() -> None:
    sizes, sample = np.array([1.0, 9, 10, 11, 12]), np.array([False, True, True, True, True])
    other = np.array([5.0, 9, 10, 11, 12])
    np.testing.assert_array_equal(
        p_values(sizes, sample, 5, PRIOR)[1:], p_values(other, sample, 5, PRIOR)[1:]
    )


# By hand: median 10, deviations 8, 1, 0, 1, 2, so their median 1.
def test_the_anomaly_index_is_neural_cleanses() -> None:
    sizes = np.array([2.0, 9, 10, 11, 12])
    np.testing.assert_allclose(anomaly_indices(sizes, everyone(sizes)), [8 / 1.4826, 1 / 1.4826, 0, 0, 0])


@pytest.mark.parametrize("numbers", [(0.0, 8.0), (0.2, 0.0), (-1.0, 8.0), (float("nan"), 8.0)])
def test_priors_without_meaning_are_refused(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Prior(*numbers)
