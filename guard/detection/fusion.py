r"""Several statistics of one check as one score, so that one boundary certifies the whole.

Each statistic is put on a scale of its own on clean inputs, where 0 is its median and 1 the value that a
share of them exceeds, and the score is the highest of them,

.. math:: s = \max_i \frac{x_i - \mathrm{median}_i}{u_i - \mathrm{median}_i}.

A trigger need show in one of them alone. Whatever the scales are, the boundary is set on the score, on other
clean inputs, so the false-rejection rate certified for it is that of the whole procedure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

__all__ = ["Fusion", "fit_fusion"]

UPPER = 0.98
"""Share of clean inputs below 1 on a statistic's scale."""

_LEAST_SCALE = 1e-3
"""Of a statistic that clean inputs hardly move; on a smaller one the rounding of float32, 6e-8, would be more
than the margin that a boundary keeps from scores that repeat (:mod:`calibration.threshold`)."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """The scales.

    Attributes:
        centres: Median of each statistic.
        scales: From there to what few clean inputs exceed; above 0.
    """

    centres: Float64[np.ndarray, " s"]
    scales: Float64[np.ndarray, " s"]

    def scores(self, statistics: Float[np.ndarray, "n s"]) -> Float64[np.ndarray, " n"]:
        """Return one score for each input; higher is more suspicious.

        Args:
            statistics: A column each, in the order that they were fitted in; higher is more suspicious.
        """
        highest: np.ndarray = ((statistics - self.centres) / self.scales).max(axis=1)
        return highest


def fit_fusion(statistics: Float[np.ndarray, "n s"]) -> Fusion:
    """Return the scales of statistics of clean inputs.

    They may be the inputs that the statistics themselves were fitted on; the boundary needs others.

    Raises:
        ValueError: If there is no input, or a statistic is not finite.
    """
    if not len(statistics) or not np.isfinite(statistics).all():
        raise ValueError("statistics: expected finite numbers of one clean input at least")
    values = statistics.astype(np.float64)
    centres = np.median(values, axis=0)
    return Fusion(centres, np.maximum(np.quantile(values, UPPER, axis=0) - centres, _LEAST_SCALE))
