r"""Several statistics of one check as one score, so that one boundary certifies the whole.

Each statistic is put on a scale of its own on clean inputs, where 0 is its median and 1 the value that a
share of them exceeds,

.. math:: z_i = \frac{x_i - \mathrm{median}_i}{u_i - \mathrm{median}_i},

and is looked at in several *views*. A view adds up statistics in rows of weights that are never negative.
What it sees of an input is its row or, of several rows, how far they are above 0 together,

.. math:: v = \Bigl\lVert \max(W z, 0) \Bigr\rVert_2,

put on a scale in the same way; the score is the highest of the views. Without views each statistic is one by
itself. A trigger need show in one view alone, and in a view of several rows it may show a little in each.

Whatever the views and scales are, the boundary is set on the score, on other clean inputs, so the
false-rejection rate certified for it is that of the whole procedure. As no weight is negative, the score
never falls where a statistic rises, and what some statistics say of it is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, sqrt
from typing import Final

import numpy as np
from jaxtyping import Float, Float64

__all__ = ["LEAST_SCALE", "UPPER", "Fusion", "View", "fit_fusion"]

UPPER: Final = 0.98
"""Share of clean inputs below 1 on a statistic's scale."""

LEAST_SCALE: Final = 1e-3
"""Of a statistic that clean inputs hardly move; on a smaller one the rounding of float32, 6e-8, would be more
than the margin that a boundary keeps from scores that repeat (:mod:`calibration.threshold`)."""

_Row = tuple[tuple[tuple[int, float], ...], float]


@dataclass(frozen=True, eq=False)
class View:
    """One way to look at all statistics.

    Attributes:
        weights: Of each statistic in each row; none is negative.
        centre: What is seen of the median of clean inputs.
        scale: From there to what few clean inputs exceed; above 0.
    """

    weights: Float64[np.ndarray, "r s"]
    centre: float = 0.0
    scale: float = 1.0

    def seen(self, standardised: Float[np.ndarray, "n s"]) -> Float64[np.ndarray, " n"]:
        """Return what is seen of each input, on the view's scale; NaN where a statistic is NaN."""
        rows = standardised @ self.weights.T
        together = rows[:, 0] if len(self.weights) == 1 else np.sqrt((np.maximum(rows, 0.0) ** 2).sum(axis=1))
        seen: np.ndarray = (together - self.centre) / self.scale
        return seen

    def over(self, places: Sequence[int]) -> View | None:
        """Return the view of some statistics alone, without rows that need others; None if it has no other.

        What it sees of an input is never above what this one does.
        """
        others = np.delete(self.weights, list(places), axis=1)
        whole = (others == 0.0).all(axis=1)
        return View(self.weights[whole][:, list(places)], self.centre, self.scale) if whole.any() else None


@dataclass(frozen=True, eq=False)
class Fusion:
    """The scales and views.

    Attributes:
        centres: Median of each statistic.
        scales: From there to what few clean inputs exceed; above 0.
        views: What the score is the highest of; none for each statistic by itself.
    """

    centres: Float64[np.ndarray, " s"]
    scales: Float64[np.ndarray, " s"]
    views: tuple[View, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Whether what statistics are weighted by is; what is not makes no number, which exceeds nothing."""
        with np.errstate(over="ignore", invalid="ignore"):
            rows = [row for view, _, _ in self._rows for row in view]
        return all(isfinite(start) and all(isfinite(one) for _, one in weights) for weights, start in rows)

    def standardised(self, statistics: Float[np.ndarray, "n s"]) -> Float64[np.ndarray, "n s"]:
        """Return each statistic on its scale."""
        on_scale: np.ndarray = (statistics - self.centres) / self.scales
        return on_scale

    def scores(self, statistics: Float[np.ndarray, "n s"]) -> Float64[np.ndarray, " n"]:
        """Return one score for each input; higher is more suspicious.

        Args:
            statistics: A column each, in the order that they were fitted in; higher is more suspicious.
        """
        on_scale = self.standardised(statistics)
        seen = np.stack([view.seen(on_scale) for view in self.views], axis=1) if self.views else on_scale
        highest: np.ndarray = seen.max(axis=1)
        return highest

    def score(self, statistics: Sequence[float]) -> float:
        """Return the same of one input, fast: this runs for every input in every round."""
        highest = -inf
        for rows, centre, scale in self._rows:
            squares = total = 0.0
            for weights, start in rows:
                total = start
                for place, weight in weights:
                    total += weight * statistics[place]
                if total > 0.0:
                    squares += total * total
            seen = ((total if len(rows) == 1 else sqrt(squares)) - centre) / scale
            highest = max(highest, seen)
        return highest

    def over(self, places: Sequence[int]) -> Fusion | None:
        """Return the fusion of some statistics alone, whose score is never above this one's.

        None if no view is made of them alone.

        Args:
            places: Which, in the order in which they will be given.
        """
        kept = list(places)
        views = tuple(view for one in self.views if (view := one.over(places)) is not None)
        blind = self.views and not views
        return None if blind or not kept else Fusion(self.centres[kept], self.scales[kept], views)

    @cached_property
    def _rows(self) -> tuple[tuple[tuple[_Row, ...], float, float], ...]:
        """Return the views as plain numbers."""
        alone = tuple(View(row[None]) for row in np.eye(len(self.centres)))
        return tuple(
            (tuple(map(self._row, view.weights)), view.centre, view.scale) for view in (self.views or alone)
        )

    def _row(self, weights: Float64[np.ndarray, " s"]) -> _Row:
        """Return the weights of a row that are not 0, of statistics as they are, and what it starts from."""
        bare = weights / self.scales
        return tuple((int(place), float(bare[place])) for place in np.flatnonzero(weights)), -float(
            bare @ self.centres
        )


def fit_fusion(statistics: Float[np.ndarray, "n s"]) -> Fusion:
    """Return the scales of statistics of clean inputs, each by itself.

    They may be the inputs that the statistics themselves were fitted on; the boundary needs others.

    Raises:
        ValueError: If there is no input, or a statistic is not finite.
    """
    if not len(statistics) or not np.isfinite(statistics).all():
        raise ValueError("statistics: expected finite numbers of one clean input at least")
    values = statistics.astype(np.float64)
    centres = np.median(values, axis=0)
    return Fusion(centres, np.maximum(np.quantile(values, UPPER, axis=0) - centres, LEAST_SCALE))
