r"""What r rejections of m fresh clean images say of the true false-rejection rate.

Of m independent draws each is rejected with the true rate R, so r has the law Bin(m, R), and the exact bounds
of Clopper and Pearson are

.. math:: \text{upper} = B_{1-\delta}(r + 1, m - r), \qquad \text{lower} = B_{\delta}(r, m - r + 1)

with B the quantiles of the beta distribution, 1 where r = m and 0 where r = 0. Each holds alone with
confidence 1 − δ. The upper bound is at most a rate α exactly where P(Bin(m, α) ≤ r) ≤ δ.

References:
    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial,
    Biometrika 26, 1934.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, Literal

from scipy import stats

__all__ = ["MOST_IMAGES", "Rejections", "Standing", "images_to_confirm"]

Standing = Literal["confirmed", "not refuted", "refuted"]

MOST_IMAGES: Final = 10_000_000
"""Where more than so many images would be needed, none are said to be enough."""


@dataclass(frozen=True)
class Rejections:
    """Rejected images among fresh clean ones, and what they prove.

    Attributes:
        rejected: r.
        of: m, the images that were checked.
        delta: Risk that a bound does not hold, in (0, 1).

    Examples:
        >>> some = Rejections(5, 1000, 0.05)
        >>> round(some.lower, 5), round(some.upper, 5), some.standing(0.01)
        (0.00197, 0.01048, 'not refuted')
    """

    rejected: int
    of: int
    delta: float

    @property
    def rate(self) -> float:
        """Share that was rejected; NaN of none."""
        return self.rejected / self.of if self.of else float("nan")

    @property
    def upper(self) -> float:
        """Upper bound of the true rate."""
        if self.rejected >= self.of:
            return 1.0
        return float(stats.beta.ppf(1 - self.delta, self.rejected + 1, self.of - self.rejected))

    @property
    def lower(self) -> float:
        """Lower bound of the true rate."""
        if not self.rejected:
            return 0.0
        return float(stats.beta.ppf(self.delta, self.rejected, self.of - self.rejected + 1))

    def standing(self, rate: float) -> Standing:
        """Return whether a rate is proven to hold, proven not to, or neither."""
        if self.upper <= rate:
            return "confirmed"
        return "refuted" if self.lower > rate else "not refuted"


def images_to_confirm(share: float, rate: float, delta: float) -> int | None:
    """Return the fewest images with which a rate is confirmed if no more than this share is rejected.

    Args:
        share: Of the images, that is rejected, in [0, 1].
        rate: To be confirmed, in (0, 1).
        delta: Risk of confirming it wrongly, in (0, 1).

    Returns:
        None where it takes more than ten million, as where the share is at or above the rate.

    Examples:
        >>> images_to_confirm(0.0, 0.01, 0.05), images_to_confirm(0.005, 0.01, 0.05)
        (299, 1182)
        >>> images_to_confirm(0.01, 0.01, 0.05) is None
        True
    """

    def least(rejected: int) -> int:
        """Return the fewest images of which so many may be rejected."""

        def proven(images: int) -> bool:
            return bool(stats.binom.cdf(rejected, images, rate) <= delta)

        return bisect_left(range(MOST_IMAGES + 1), True, key=proven)

    if share >= rate:
        return None
    most = int(rate * MOST_IMAGES)
    rejected = bisect_left(range(most), True, key=lambda count: share * least(count) <= count)
    images = least(rejected)
    return images if images <= MOST_IMAGES and share * images <= rejected else None
