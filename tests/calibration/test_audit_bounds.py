"""What rejections prove: golden numbers, coverage by exact sums, and the fewest images by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.audit.bounds import Rejections, images_to_confirm
from calibration.threshold import conformal_rank, minimum_images


@pytest.mark.parametrize(
    ("rejected", "of", "standing"),
    [
        (0, 299, "confirmed"),  # P(Bin(299, .01) = 0) = .99^299 = .0495
        (0, 298, "not refuted"),
        (12, 2000, "confirmed"),
        (13, 2000, "not refuted"),
        (80, 10000, "confirmed"),
        (83, 10000, "confirmed"),
        (84, 10000, "not refuted"),
        (5, 1000, "not refuted"),
        (15, 1000, "not refuted"),
        (16, 1000, "refuted"),  # P(Bin(1000, .01) >= 16) = .0479
        (1000, 1000, "refuted"),
    ],
)
def test_what_certifies_one_percent_at_95_percent(rejected: int, of: int, standing: str) -> None:
    """The task's own figures, and the neighbours that the binomial law gives."""
    assert Rejections(rejected, of, 0.05).standing(0.01) == standing


def test_the_bounds_are_the_published_ones() -> None:
    assert Rejections(5, 1000, 0.05).upper == pytest.approx(0.0105, abs=5e-5)
    # Two-sided 95 % of 10 of 20, Clopper and Pearson's own table: 0.272 to 0.728.
    assert Rejections(10, 20, 0.025).lower == pytest.approx(0.2720, abs=5e-5)
    assert Rejections(10, 20, 0.025).upper == pytest.approx(0.7280, abs=5e-5)
    assert Rejections(0, 299, 0.05).lower == 0.0
    assert Rejections(7, 7, 0.05).upper == 1.0


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("of", [50, 400])
def test_each_bound_fails_no_more_often_than_it_says(rate: float, of: int) -> None:
    delta = 0.05
    chances = stats.binom.pmf(np.arange(of + 1), of, rate)
    found = [Rejections(rejected, of, delta) for rejected in range(of + 1)]
    assert chances[[one.upper < rate for one in found]].sum() <= delta
    assert chances[[one.lower > rate for one in found]].sum() <= delta
    assert chances[[one.standing(rate) == "refuted" for one in found]].sum() <= delta


@pytest.mark.parametrize(
    ("share", "rate", "delta"),
    [(0.0, 0.01, 0.05), (0.0, 0.001, 0.05), (0.001, 0.01, 0.05), (0.005, 0.01, 0.05), (0.02, 0.05, 0.01)],
)
def test_the_fewest_images_are_those_that_counting_up_finds(share: float, rate: float, delta: float) -> None:
    least = minimum_images(rate, delta)
    counted = next(n for n in range(least, 10**6) if share * n <= conformal_rank(n, rate, delta) - 1)
    assert images_to_confirm(share, rate, delta) == counted


@pytest.mark.parametrize("share", [0.01, 0.02, 0.009999])
def test_no_number_of_images_confirms_a_rate_that_is_reached(share: float) -> None:
    assert images_to_confirm(share, 0.01, 0.05) is None
