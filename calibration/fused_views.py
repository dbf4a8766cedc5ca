r"""How the fused detector looks at its statistics: in views for triggers of different kinds.

Of the statistics on their scales (:mod:`guard.detection.fusion`), departure d, entropy h, stratified t and
strip s:

===========  ====================================  =======================================================
view         sees                                  triggers that it is there for
===========  ====================================  =======================================================
outstanding  d, h and t, their length together     show in one of them, or a little in several
unmoved      d + t + s                             hold the prediction under every overlay: clean inputs
                                                   reach each of the three alone, hardly all at once
astray       d + h / 2                             lead blends elsewhere: clean inputs that depart as far
                                                   are most often those that hold theirs, of low entropy
===========  ====================================  =======================================================

Each view has the layer distance, too, as a row of its own, twice as heavy: that tells most triggers better
than all blends do. A statistic that is not there is left out of every view.

Of the highest statistic alone, which the score was before, one with a heavy tail sets the boundary for all.
Weights are whole or halves on purpose: near ones do as well, and all were settled on the networks of
benchmarks/results/detection.md, with 1,000 and with 300 images to fit on, three splits of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Float

from guard.detection.fusion import LEAST_SCALE, UPPER, Fusion, View, fit_fusion
from guard.detection.measurements import Statistic

__all__ = ["fit_views"]

_Weights = Mapping[Statistic, float]

_OUTSTANDING: Final[tuple[_Weights, ...]] = (
    {"departure": 1.0},
    {"entropy": 1.0},
    {"stratified": 1.0},
    {"surprise": 1.0},
)
_UNMOVED: Final[tuple[_Weights, ...]] = ({"departure": 1.0, "stratified": 1.0, "strip": 1.0},)
_ASTRAY: Final[tuple[_Weights, ...]] = ({"departure": 1.0, "entropy": 0.5},)
_LAYERS: Final[_Weights] = {"layers": 2.0}


def fit_views(names: tuple[Statistic, ...], statistics: Float[np.ndarray, "n s"]) -> Fusion:
    """Return scales and views of statistics of clean inputs; they should not be what those were fitted on.

    Args:
        names: Which statistics.
        statistics: A column each.

    Raises:
        ValueError: If there is no input, or a statistic is not finite.
    """
    scales = fit_fusion(statistics)
    on_scale = scales.standardised(statistics)
    views = tuple(_fitted(weights, on_scale) for weights in _views_of(names))
    return Fusion(scales.centres, scales.scales, views)


def _views_of(names: tuple[Statistic, ...]) -> list[np.ndarray]:
    """Return the rows of weights of each view that these statistics allow, none twice."""
    inner = [_LAYERS] if "layers" in names else []
    found: list[np.ndarray] = []
    for view in (_OUTSTANDING, _UNMOVED, _ASTRAY):
        outer = [row for row in view if any(name in names for name in row)]
        if not outer:
            continue
        rows = np.array([[row.get(name, 0.0) for name in names] for row in (*outer, *inner)])
        if not any(np.array_equal(rows, other) for other in found):
            found.append(rows)
    return found or [np.array([[row.get(name, 0.0) for name in names] for row in inner])]


def _fitted(weights: np.ndarray, on_scale: np.ndarray) -> View:
    seen = View(weights).seen(on_scale)
    centre = float(np.median(seen))
    return View(weights, centre, max(float(np.quantile(seen, UPPER)) - centre, LEAST_SCALE))
