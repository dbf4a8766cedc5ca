r"""Where the boundary lies below which a mean entropy is suspicious, and what is promised of it.

Theory of operation. Let :math:`s_1, \dots, s_n` be the mean entropies of n clean images, drawn
independently from the clean inputs the model will meet, with distribution F, and
:math:`s_{(1)} \le \dots \le s_{(n)}` their order. An input is suspicious when its mean entropy is
strictly below :math:`\tau = s_{(k)}`, so k − 1 calibration scores at the most are. The false-rejection
rate of *this* τ is the random number :math:`R = P(S < s_{(k)} \mid s_1, \dots, s_n)`.

*Its law.* Write every score as :math:`F^{-1}(U)` with U uniform on (0, 1) and :math:`F^{-1}` the
(non-decreasing) quantile function; then :math:`s_{(k)} = F^{-1}(U_{(k)})`. A fresh score
:math:`F^{-1}(U)` below :math:`s_{(k)}` needs :math:`U < U_{(k)}`, so :math:`R \le U_{(k)}`, with
equality when F is continuous. The k-th smallest of n uniforms has the law Beta(k, n + 1 − k), mean
k / (n + 1), and

.. math:: P(R > \alpha) \le P(U_{(k)} > \alpha) = P(\mathrm{Bin}(n, \alpha) \le k - 1),

because the k-th smallest exceeds α exactly when fewer than k uniforms fall at or below it. Hence every
k with BinomCDF(k − 1; n, α) ≤ δ keeps R ≤ α with confidence 1 − δ, and the largest such k rejects the
most trojans. Ties (F with jumps) only lower R: strictness leaves the jump at τ unrejected, and the
proof above never uses continuity.

*The margin.* "Ties only lower R" needs an input that scored τ to score τ again. Served scores differ from
calibrated ones by 1e-8 to 1e-6 bits (softmax graphs, another device or batch, a client that divides by 255
instead of multiplying by 1/255), which could reject a whole jump at τ. So the boundary is lowered to
:math:`(1 - \varepsilon)\,s_{(k)}`, ε = ``SCORE_MARGIN``: that only lowers R, costs next to no trojans,
and covers noise up to 1e-6 bits for every boundary from 0.01 bits up.

References:
    Clopper, Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934 (the bound).
    Wilks, Determination of sample sizes for setting tolerance limits, Annals of Mathematical
    Statistics 12, 1941 (the Beta law of a covered share).
    Vovk, Conditional validity of inductive conformal predictors, ACML 2012, proposition 2 (the same
    statement for conformal prediction).
    Gao et al., STRIP, ACSAC 2019, section 5.2 (the Normal percentile).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from calibration.errors import NoBoundaryError, TooFewImagesError
from guard.artifact import BoundaryRecord, ScoreBoundary

__all__ = [
    "SCORE_MARGIN",
    "conformal_boundary",
    "conformal_rank",
    "minimum_images",
    "normal_boundary",
    "score_boundary",
]

SCORE_MARGIN = 1e-4
"""Share by which the boundary is lowered, so that rounding cannot push a tie below it."""

_TINY_RATE = 1e-12


def minimum_images(alpha: float, delta: float) -> int:
    r"""Return the fewest calibration images with which a rate of ``alpha`` can be certified.

    .. math:: n = \min \{ n : (1 - \alpha)^n \le \delta \} = \lceil \log \delta / \log(1 - \alpha) \rceil

    Args:
        alpha: Highest false-rejection rate, in (0, 1).
        delta: Risk that the true rate is higher all the same, in (0, 1).

    Examples:
        >>> minimum_images(0.01, 0.05), minimum_images(0.001, 0.05)
        (299, 2995)
    """
    _check_rates(alpha, delta)
    count = max(1, math.ceil(math.log(delta) / math.log1p(-alpha)))
    while conformal_rank(count, alpha, delta) < 1:  # a quotient rounded down, at the most one short
        count += 1
    return count


def conformal_rank(n: int, alpha: float, delta: float) -> int:
    """Return the largest k with BinomCDF(k − 1; n, alpha) ≤ delta, or 0 if there is none.

    Examples:
        >>> conformal_rank(1000, 0.01, 0.05), conformal_rank(298, 0.01, 0.05)
        (5, 0)
    """
    _check_rates(alpha, delta)
    k = int(stats.binom.ppf(delta, n, alpha))  # the smallest count whose CDF reaches delta
    while stats.binom.cdf(k, n, alpha) <= delta:
        k += 1
    while k > 0 and stats.binom.cdf(k - 1, n, alpha) > delta:
        k -= 1
    return k


def conformal_boundary(
    scores: Float[np.ndarray, " n"], alpha: float, delta: float, *, may_be_zero: bool = False
) -> BoundaryRecord:
    r"""Return the highest boundary whose true rate is at most ``alpha``, with confidence 1 − ``delta``.

    The boundary is a margin below the k-th smallest score, k the largest with BinomCDF(k − 1; n, α) ≤ δ;
    mean entropies strictly below it are suspicious. The module's text proves the guarantee, ties included.

    Args:
        scores: Mean entropy, bits, of each calibration image; independent draws of clean inputs, given
            the overlays.
        alpha: Highest false-rejection rate, in (0, 1).
        delta: Risk that the true rate is higher all the same, in (0, 1).
        may_be_zero: Whether a boundary of 0 bits, which rejects nothing, is an answer too.

    Returns:
        The boundary. ``certified_frr`` is the smallest rate that this k certifies at the same confidence,
        the Clopper–Pearson bound BetaInv(1 − δ; k, n + 1 − k) ≤ α; ``expected_frr`` is the mean
        k / (n + 1) of the Beta law, an upper bound of the mean where scores tie.

    Raises:
        TooFewImagesError: If even the smallest score certifies nothing; its ``needed`` is enough.
        NoBoundaryError: If the k-th smallest score is 0 bits.

    Examples:
        >>> record = conformal_boundary(np.linspace(0.5, 2.5, 1000), 0.01, 0.05)
        >>> record.rank, round(record.boundary_bits, 3), round(record.certified_frr, 5)
        (5, 0.508, 0.00913)
    """
    ordered = _sorted_scores(scores)
    n = len(ordered)
    k = conformal_rank(n, alpha, delta)
    if k < 1:
        raise _too_few(n, alpha, delta)
    boundary = float(ordered[k - 1]) * (1.0 - SCORE_MARGIN)
    if boundary <= 0.0 and not may_be_zero:
        raise NoBoundaryError(
            f"the boundary would be 0 bits, which rejects nothing: {int((ordered <= 0).sum())} of {n} mean "
            f"entropies are 0, so the model is certain whatever is blended in; check the preprocessing "
            f"(--scale, --mean, --std), try another --blend, or export logits instead of probabilities"
        )
    bound = float(stats.beta.isf(delta, k, n + 1 - k))
    return BoundaryRecord(
        method="conformal",
        boundary_bits=boundary,
        frr=alpha,
        confidence=1.0 - delta,
        certified_frr=min(bound, alpha),
        expected_frr=k / (n + 1),
        rank=k,
        n_scores=n,
    )


def score_boundary(scores: Float[np.ndarray, " n"], alpha: float, delta: float) -> ScoreBoundary:
    """Return the lowest boundary on scores whose true rate is at most ``alpha``, at confidence 1 − ``delta``.

    The same as :func:`conformal_boundary` on minus the scores, with a margin away from the boundary.

    Args:
        scores: Score of each calibration image, higher is more suspicious; independent draws of clean
            inputs, given the detector.
        alpha: Highest false-rejection rate, in (0, 1).
        delta: Risk that the true rate is higher all the same, in (0, 1).

    Raises:
        TooFewImagesError: If even the highest score certifies nothing; its ``needed`` is enough.
    """
    ordered = _sorted_scores(scores)
    n = len(ordered)
    k = conformal_rank(n, alpha, delta)
    if k < 1:
        raise _too_few(n, alpha, delta)
    highest = float(ordered[-k])
    return ScoreBoundary(
        boundary=highest + SCORE_MARGIN * max(1.0, abs(highest)),
        frr=alpha,
        confidence=1.0 - delta,
        certified_frr=min(float(stats.beta.isf(delta, k, n + 1 - k)), alpha),
        expected_frr=k / (n + 1),
        rank=k,
        n_scores=n,
    )


def normal_boundary(scores: Float[np.ndarray, " n"], alpha: float) -> BoundaryRecord:
    r"""Return the paper's boundary, the ``alpha`` percentile of a fitted Normal. It guarantees nothing.

    .. math:: \tau = \hat\mu + \hat\sigma\, \Phi^{-1}(\alpha)

    Args:
        scores: Mean entropy, bits, of each calibration image; at least 2.
        alpha: False-rejection rate aimed at, in (0, 1).

    Returns:
        The boundary, with no confidence and no certified rate. ``expected_frr`` is the mean true rate *if*
        the scores were Normal, where the studentised fresh score has Student's law with n − 1 degrees of
        freedom; real entropies are skewed and bounded by 0, so the true rate may be far off.

    Raises:
        TooFewImagesError: If there are fewer than 2 scores.
        NoBoundaryError: If the percentile is at or below 0 bits, where no entropy can be.

    Examples:
        >>> round(normal_boundary(np.array([0.9, 1.0, 1.1]), 0.01).boundary_bits, 3)
        0.81

    References:
        Gao et al., STRIP, ACSAC 2019, section 5.2 and table 3; the released code fits mean and standard
        deviation by maximum likelihood (divisor n), as here.
    """
    _check_rates(alpha, 0.5)
    ordered = _sorted_scores(scores)
    n = len(ordered)
    if n < 2:
        raise TooFewImagesError(
            f"a Normal needs at least 2 calibration images, got {n}; add images", needed=2, got=n
        )
    mean, deviation = float(ordered.mean()), float(ordered.std())
    quantile = float(stats.norm.ppf(alpha))
    boundary = mean + deviation * quantile
    if boundary <= 0.0:
        raise NoBoundaryError(
            f"the {alpha:.3g} quantile of the fitted Normal (mean {mean:.4g}, deviation {deviation:.4g}) is "
            f"{boundary:.4g} bits, and no entropy is below 0, so nothing would be rejected (the paper meets "
            f"this on MNIST at 0.5 %); use --threshold conformal, or a higher --frr"
        )
    expected = float(stats.t.cdf(quantile * math.sqrt((n - 1) / (n + 1)), n - 1))
    return BoundaryRecord(
        method="normal",
        boundary_bits=boundary * (1.0 - SCORE_MARGIN),
        frr=alpha,
        confidence=None,
        certified_frr=None,
        expected_frr=min(max(expected, _TINY_RATE), 1.0 - _TINY_RATE),
        rank=None,
        n_scores=n,
    )


def _too_few(n: int, alpha: float, delta: float) -> TooFewImagesError:
    needed = minimum_images(alpha, delta)
    return TooFewImagesError(
        f"{n} calibration images cannot certify a false-rejection rate of {alpha:.3%} with confidence "
        f"{1 - delta:.1%}, expected at least {needed}; add images, or ask for a higher --frr or a lower "
        f"--confidence",
        needed=needed,
        got=n,
    )


def _sorted_scores(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    return np.sort(scores.astype(np.float64))


def _check_rates(alpha: float, delta: float) -> None:
    for name, rate in (("alpha", alpha), ("delta", delta)):
        if not 0.0 < rate < 1.0:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {rate}")
