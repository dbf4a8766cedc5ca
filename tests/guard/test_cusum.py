"""Cumulative sums of normal scores, against Siegmund's formula and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from guard.detection.cusum import Cusum, OneSided, mean_run_length, normal_score


def run_length(limit: float, generator: np.random.Generator, shift: float = 0.0) -> int:
    one, length = OneSided(limit), 0
    while not one.alarm:
        one.update(float(generator.standard_normal()) + shift)
        length += 1
    return length


def test_false_alarms_come_as_rarely_as_the_formula_says() -> None:
    generator = np.random.default_rng(8)
    lengths = [run_length(3.0, generator) for _ in range(700)]
    assert np.mean(lengths) == pytest.approx(mean_run_length(3.0), rel=0.1)  # 119; 10 % is 2.7 deviations


@pytest.mark.parametrize(("shift", "most"), [(1.0, 40), (2.0, 12)])
def test_a_shift_is_noticed_about_as_soon_as_the_limit_over_what_exceeds_the_allowance(
    shift: float, most: int
) -> None:
    generator = np.random.default_rng(8)
    assert np.mean([run_length(12.0, generator, shift) for _ in range(200)]) <= most


def test_low_values_are_one_sum_and_high_ones_the_other() -> None:
    cusum = Cusum(2.0)
    for z in (-1.5, -2.0):
        cusum.update(z)
    assert (cusum.lower.value, cusum.upper.value) == (2.5, 0.0)
    assert (cusum.lower.alarm, cusum.upper.alarm, cusum.alarm) == (True, False, True)


def test_a_sum_is_kept_within_twice_the_limit_and_its_alarm_ends_at_0() -> None:
    one = OneSided(2.0)
    for _ in range(100):
        one.update(3.0)
    assert one.value == 4.0
    seen = []
    for _ in range(8):
        one.update(0.0)
        seen.append((one.value, one.alarm))
    assert seen[5:] == [(1.0, True), (0.5, True), (0.0, False)]


def test_scores_of_uniform_p_values_are_standard_normal_to_the_last_step() -> None:
    n = 999
    scores = np.array([normal_score(rank / (n + 1), n) for rank in range(1, n + 2)])
    assert np.isfinite(scores).all()
    assert scores.mean() == pytest.approx(0.0, abs=1e-9)
    assert scores.std() == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(scores, -scores[::-1], atol=1e-9)


def test_a_limit_that_is_not_above_0_is_refused() -> None:
    with pytest.raises(ValueError, match="limit: expected a number above 0, got 0"):
        Cusum(0.0)
