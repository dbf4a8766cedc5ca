"""The boundary and its guarantee, against exact sums, the Beta law, ties, and the published tables."""

from __future__ import annotations

import re
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calibration.errors import CalibrationError, NoBoundaryError, TooFewImagesError
from calibration.threshold import (
    SCORE_MARGIN,
    conformal_boundary,
    conformal_rank,
    minimum_images,
    normal_boundary,
)
from guard.errors import GuardError

RATES = st.floats(0.002, 0.4)
RISKS = st.floats(0.001, 0.5)


def exact_rank(n: int, alpha: Fraction, delta: Fraction) -> int:
    """The largest k with P(Bin(n, alpha) ≤ k − 1) ≤ delta, in rational arithmetic."""
    total, k = Fraction(0), 0
    while True:
        total += comb(n, k) * alpha**k * (1 - alpha) ** (n - k)
        if total > delta:
            return k
        k += 1


# Provenance: computed once from BinomCDF(k − 1; n, α) ≤ δ, the definition; 299 and 459, 2995 and 4603 are
# Wilks' classic sample sizes for one-sided tolerance limits.
@pytest.mark.parametrize(
    ("n", "alpha", "delta", "k"),
    [
        (298, 0.01, 0.05, 0),
        (299, 0.01, 0.05, 1),
        (1000, 0.01, 0.05, 5),
        (2000, 0.01, 0.05, 13),
        (5000, 0.01, 0.05, 39),
        (10000, 0.01, 0.05, 84),
        (50000, 0.01, 0.05, 464),
        (458, 0.01, 0.01, 0),
        (459, 0.01, 0.01, 1),
        (1000, 0.01, 0.01, 3),
        (2000, 0.01, 0.01, 10),
        (5000, 0.01, 0.01, 34),
        (10000, 0.01, 0.01, 78),
        (2994, 0.001, 0.05, 0),
        (2995, 0.001, 0.05, 1),
        (5000, 0.001, 0.05, 2),
        (10000, 0.001, 0.05, 5),
    ],
)
def test_the_rank_is_that_of_the_published_table(n: int, alpha: float, delta: float, k: int) -> None:
    assert conformal_rank(n, alpha, delta) == k


@pytest.mark.parametrize(
    ("alpha", "delta"), [(Fraction(1, 100), Fraction(1, 20)), (Fraction(1, 10), Fraction(1, 100))]
)
def test_the_rank_equals_an_exact_rational_sum(alpha: Fraction, delta: Fraction) -> None:
    sizes = [1, 10, 44, 100, 298, 299, 300, 500]
    expected = [exact_rank(n, alpha, delta) for n in sizes]
    assert [conformal_rank(n, float(alpha), float(delta)) for n in sizes] == expected


@pytest.mark.parametrize(
    ("alpha", "delta", "n"), [(0.01, 0.05, 299), (0.001, 0.05, 2995), (0.01, 0.01, 459), (0.001, 0.01, 4603)]
)
def test_the_smallest_calibration_set_is_wilks_sample_size(alpha: float, delta: float, n: int) -> None:
    assert minimum_images(alpha, delta) == n


@given(RATES, RISKS)
def test_one_image_fewer_than_the_minimum_certifies_nothing(alpha: float, delta: float) -> None:
    least = minimum_images(alpha, delta)
    assert conformal_rank(least, alpha, delta) >= 1
    assert conformal_rank(least - 1, alpha, delta) == 0


@given(st.integers(1, 3000), RATES, RISKS)
def test_the_rank_is_the_largest_that_the_beta_law_allows(n: int, alpha: float, delta: float) -> None:
    k = conformal_rank(n, alpha, delta)
    if k:
        assert stats.beta.sf(alpha, k, n + 1 - k) <= delta * (1 + 1e-9)
    if k < n:
        assert stats.beta.sf(alpha, k + 1, n - k) > delta * (1 - 1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(60, 400), st.floats(0.05, 0.3), st.floats(0.01, 0.2))
@settings(max_examples=40)
def test_the_boundary_is_the_ranked_score_in_whatever_order_scores_come(
    seed: int, n: int, alpha: float, delta: float
) -> None:
    scores = np.random.default_rng(seed).gamma(4.0, 0.2, n)
    if n < minimum_images(alpha, delta):
        return
    record = conformal_boundary(scores, alpha, delta)
    assert record == conformal_boundary(scores[::-1].copy(), alpha, delta)
    assert record.rank is not None
    tie = np.sort(scores)[record.rank - 1]
    assert record.boundary_bits == tie * (1 - SCORE_MARGIN)
    assert int((scores < record.boundary_bits).sum()) <= record.rank - 1
    assert record.certified_frr is not None
    assert record.expected_frr < record.certified_frr <= alpha
    assert record.confidence == pytest.approx(1 - delta)
    assert record.n_scores == n


@given(st.integers(300, 5000), st.floats(0.01, 0.2), st.floats(0.005, 0.2))
def test_the_certified_rate_is_the_tight_clopper_pearson_bound(n: int, alpha: float, delta: float) -> None:
    if n < minimum_images(alpha, delta):
        return
    record = conformal_boundary(np.linspace(0.1, 3.0, n), alpha, delta)
    assert record.rank is not None
    assert record.certified_frr is not None
    at_the_bound = stats.binom.cdf(record.rank - 1, n, record.certified_frr)
    assert at_the_bound == pytest.approx(delta, rel=1e-6)  # any smaller rate would not be certified
    assert record.expected_frr == pytest.approx(stats.beta.mean(record.rank, n + 1 - record.rank))


def test_an_audit_of_the_published_numbers_agrees() -> None:
    # Provenance: Clopper–Pearson with r rejections of m: 0/299, 12/2000, 80/10000 certify 1 % at 95 %; 5/1000
    # gives 1.05 %. Rejecting below the (r + 1)-th score leaves r calibration scores rejected.
    assert stats.beta.isf(0.05, 6, 995) == pytest.approx(0.0105, abs=5e-5)
    record = conformal_boundary(np.linspace(0.5, 2.5, 1000), 0.0106, 0.05)
    assert record.rank == 6
    assert record.certified_frr == pytest.approx(0.0105, abs=5e-5)


def realised_rates(n: int, k: int, draws: int) -> np.ndarray:
    """The true rate of rejecting below the k-th smallest of n uniform scores is that score."""
    uniform = np.random.default_rng(2024).random((draws, n))
    return np.partition(uniform, k - 1, axis=1)[:, k - 1]


def test_the_true_rate_exceeds_alpha_in_no_more_than_delta_of_calibrations() -> None:
    n, alpha, delta, draws = 600, 0.02, 0.1, 4000
    rank = conformal_boundary(np.linspace(0.1, 1.0, n), alpha, delta).rank
    assert rank is not None
    exact = stats.binom.cdf(rank - 1, n, alpha)
    share = (realised_rates(n, rank, draws) > alpha).mean()
    spread = np.sqrt(exact * (1 - exact) / draws)
    assert exact <= delta
    assert share == pytest.approx(exact, abs=4 * spread)


def test_the_true_rate_follows_the_beta_law() -> None:
    rank, n = 5, 400
    rates = realised_rates(n, rank, 2000)
    assert stats.kstest(rates, stats.beta(rank, n + 1 - rank).cdf).pvalue > 0.01
    assert rates.mean() == pytest.approx(rank / (n + 1), rel=0.05)


def test_ties_only_lower_the_true_rate() -> None:
    n, alpha, delta, draws = 300, 0.05, 0.1, 4000
    levels = np.array([0.1, 0.2, 0.3, 0.9])
    shares = np.array([0.03, 0.03, 0.04, 0.9])  # jumps of the scores' distribution, larger than alpha in sum
    below = np.cumsum(shares) - shares  # P(S < level)
    rank = conformal_rank(n, alpha, delta)
    scores = np.random.default_rng(7).choice(len(levels), size=(draws, n), p=shares)
    chosen = np.partition(scores, rank - 1, axis=1)[:, rank - 1]
    assert (below[chosen] > alpha).mean() <= delta
    assert below[chosen].mean() < rank / (n + 1)


def test_a_tie_at_the_boundary_that_is_served_a_little_lower_is_not_rejected() -> None:
    scores = np.concatenate([np.full(500, 0.02), np.linspace(0.5, 2.5, 500)])
    boundary = conformal_boundary(scores, 0.01, 0.05).boundary_bits
    assert int((scores - 1e-6 < boundary).sum()) == 0


def test_too_few_scores_are_refused_with_the_number_needed() -> None:
    expected = (
        "298 calibration images cannot certify a false-rejection rate of 1.000% with confidence 95.0%, "
        "expected at least 299; add images, or ask for a higher --frr or a lower --confidence"
    )
    with pytest.raises(TooFewImagesError, match=re.escape(expected)) as caught:
        conformal_boundary(np.linspace(0.5, 2.5, 298), 0.01, 0.05)
    assert (caught.value.needed, caught.value.got) == (299, 298)
    assert isinstance(caught.value, CalibrationError)
    assert isinstance(caught.value, GuardError)


def test_a_boundary_of_zero_bits_is_refused() -> None:
    scores = np.concatenate([np.zeros(10), np.linspace(0.5, 2.5, 990)])
    expected = "the boundary would be 0 bits, which rejects nothing: 10 of 1000 mean entropies are 0"
    with pytest.raises(NoBoundaryError, match=re.escape(expected)):
        conformal_boundary(scores, 0.01, 0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0])
def test_rates_outside_the_open_unit_interval_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"alpha must lie strictly between 0 and 1, got {rate}"):
        minimum_images(rate, 0.05)
    with pytest.raises(ValueError, match=f"delta must lie strictly between 0 and 1, got {rate}"):
        conformal_rank(1000, 0.01, rate)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must be finite, got nan"):
        conformal_boundary(np.array([0.5, np.nan]), 0.5, 0.4)


# Provenance: Gao et al., STRIP, table 3: mean and deviation of clean entropies, and the boundary at a preset
# rate. The paper prints two or three digits of each, hence the tolerance.
@pytest.mark.parametrize(
    ("mean", "deviation", "alpha", "boundary"),
    [
        (0.196, 0.074, 0.03, 0.058),
        (0.196, 0.074, 0.02, 0.046),
        (0.196, 0.074, 0.01, 0.026),
        (0.97, 0.30, 0.02, 0.36),
        (0.97, 0.30, 0.01, 0.28),
        (0.97, 0.30, 0.005, 0.20),
        (1.11, 0.31, 0.01, 0.38),
        (0.53, 0.19, 0.02, 0.133),
        (0.53, 0.19, 0.01, 0.081),
    ],
)
def test_the_normal_boundary_is_that_of_the_papers_table(
    mean: float, deviation: float, alpha: float, boundary: float
) -> None:
    scores = mean + deviation * np.array([-1.0, 1.0] * 1000)  # exactly this mean and deviation
    assert normal_boundary(scores, alpha).boundary_bits == pytest.approx(boundary, abs=0.012)


def test_the_normal_boundary_promises_nothing() -> None:
    record = normal_boundary(np.linspace(1.0, 2.0, 500), 0.01)
    assert record.method == "normal"
    assert (record.confidence, record.certified_frr, record.rank) == (None, None, None)
    assert record.frr == 0.01


def test_the_normal_boundarys_expected_rate_is_that_of_normal_scores() -> None:
    scores = np.random.default_rng(3).normal(5.0, 1.0, (4000, 20))
    rates = stats.norm.cdf([normal_boundary(row, 0.05).boundary_bits for row in scores[:800]], 5.0, 1.0)
    expected = normal_boundary(scores[0], 0.05).expected_frr
    assert expected > 0.05  # 20 images leave mean and deviation uncertain, which costs false rejections
    assert rates.mean() == pytest.approx(expected, rel=0.1)


def test_a_normal_boundary_below_zero_is_refused_as_on_the_papers_mnist() -> None:
    scores = np.random.default_rng(0).gamma(1.5, 0.13, 2000)  # skewed, as MNIST's entropies are
    expected = r"the 0\.005 quantile of the fitted Normal .* is -0\.\d+ bits, and no entropy is below 0"
    with pytest.raises(NoBoundaryError, match=expected):
        normal_boundary(scores, 0.005)


def test_a_normal_needs_two_scores() -> None:
    with pytest.raises(
        TooFewImagesError, match="a Normal needs at least 2 calibration images, got 1"
    ) as caught:
        normal_boundary(np.array([1.0]), 0.01)
    assert caught.value.needed == 2
