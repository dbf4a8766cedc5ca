r"""Has the whole distribution of scores moved? Cumulative sums of p-values on a normal scale, both ways.

The p-value of a clean input is uniform, so :math:`z = \Phi^{-1}(p)` is standard normal, and

.. math:: C^-_t = \max(0, C^-_{t-1} - z_t - k), \qquad C^+_t = \max(0, C^+_{t-1} + z_t - k)

stay small until the mean of z moves by more than k: down where inputs look more suspicious than at
calibration, up where they look less so. With k = ½, which is best against a shift of one standard
deviation, a sum reaches the limit h by chance once in about

.. math:: \frac{e^{2kb} - 2kb - 1}{2k^2}, \qquad b = h + 1.166

values: 940 for h = 5, a million for h = 12. It takes about :math:`h/(s - k)` values to notice a shift of s.

Only exact p-values may enter. That of an input that was accepted early is a bound, and would look like a
shift.

References:
    Page, Continuous inspection schemes, Biometrika 1954. Siegmund, Sequential Analysis, 1985, section 10.
"""

from __future__ import annotations

from math import exp
from statistics import NormalDist
from typing import Final

__all__ = ["ALLOWANCE", "Cusum", "OneSided", "mean_run_length", "normal_score"]

ALLOWANCE: Final = 0.5
"""k, in standard deviations."""

_STANDARD = NormalDist()
_OVERSHOOT: Final = 1.166
_HEADROOM: Final = 2.0


class OneSided:
    """One of the sums.

    It is kept within twice the limit, which changes no alarm and lets one end soon after its cause.

    Args:
        limit: h, in standard deviations; above 0.

    Attributes:
        value: C.
        alarm: Raised where the sum reaches the limit, and over where it is back at 0.

    Raises:
        ValueError: If the limit is not above 0.
    """

    def __init__(self, limit: float) -> None:
        if not limit > 0.0:
            raise ValueError(f"limit: expected a number above 0, got {limit:g}")
        self._limit = limit
        self.value = 0.0
        self.alarm = False

    def update(self, z: float) -> None:
        """Take in the next value, standard normal while nothing moved; a high mean is looked for."""
        self.value = min(_HEADROOM * self._limit, max(0.0, self.value + z - ALLOWANCE))
        self.alarm = self.value >= self._limit or (self.alarm and self.value > 0.0)


class Cusum:
    """Both sums; constant memory.

    Args:
        limit: h, in standard deviations; above 0.

    Attributes:
        lower, upper: Of values that are too low (suspicious) and too high.
    """

    def __init__(self, limit: float) -> None:
        self.lower = OneSided(limit)
        self.upper = OneSided(limit)

    def update(self, z: float) -> None:
        """Take in the next value, standard normal while nothing moved."""
        self.lower.update(-z)
        self.upper.update(z)

    @property
    def alarm(self) -> bool:
        """Whether either is raised."""
        return self.lower.alarm or self.upper.alarm


def normal_score(p: float, references: int) -> float:
    """Return a conformal p-value on the scale of a standard normal; low is suspicious.

    Such a p-value is one of 1/(n+1), 2/(n+1), …, 1, and stands for the step below it, so its middle is taken.

    Args:
        p: As :func:`guard.detection.threshold.p_value` gives it, of an input that had all passes.
        references: n, the calibration images that it was ranked among.

    Examples:
        >>> normal_score(0.5, 1), round(normal_score(1.0, 99), 2)
        (-0.6744897501960817, 2.58)
    """
    return _STANDARD.inv_cdf(p - 0.5 / (references + 1))


def mean_run_length(limit: float) -> float:
    """Return how many values it takes on average until one sum reaches the limit by chance.

    Examples:
        >>> [round(mean_run_length(limit)) for limit in (5.0, 12.0)]
        [938, 1044574]
    """
    b = limit + _OVERSHOOT
    return (exp(2 * ALLOWANCE * b) - 2 * ALLOWANCE * b - 1) / (2 * ALLOWANCE**2)
