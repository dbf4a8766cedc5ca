"""Fit the fused detector on the pool's clean images: what they answer, scales, and when to accept early.

The images here may be chosen, ordered and looked at in any way: none of them takes part in setting the
boundary, which :func:`calibration.threshold.score_boundary` does on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from calibration.fused_views import fit_views
from guard.detection.capabilities.layer_distances import LayerDistances
from guard.detection.fused import Early
from guard.detection.fusion import Fusion
from guard.detection.measurements import COLUMNS, KNOWN_EARLY, Measures, Statistic
from guard.detection.responses import fit_responses
from guard.detection.stratified import fit_strata

__all__ = [
    "ACCEPTED_EARLY",
    "DEFAULT_STATISTICS",
    "FusedFit",
    "fit_fused",
    "fused_rounds",
    "most_telling_first",
]

DEFAULT_STATISTICS: Final[tuple[Statistic, ...]] = ("departure", "entropy", "stratified", "strip")
"""Triggers that hold the prediction or move it show in the departure, those that leave the model uncertain in
the entropy, those of one source class in the strata; minus the entropy adds to what holds the prediction.
With the surprise in the entropy's place as many are found of most kinds, of low-confidence triggers half
instead of all."""

ACCEPTED_EARLY: Final = MappingProxyType({2: 0.4, 4: 0.7, 8: 0.9, 16: 0.95})
"""Blends after which inputs may be accepted, and the share of clean ones that the rule takes. On fourteen
attacks on CIFAR-10 that spends 5.3 blends on a clean input, and misses .4 points more of the triggered ones
than all blends do, nearly all of them a warp's; with layers, which take most triggered inputs out in the
first round, 5.7 blends and none more. Shares of .72, .92 and .97 spend .4 fewer and miss more with layers."""

FOLDS: Final = 5
"""Parts of the images, each measured by what was fitted on the others, for scales."""


@dataclass(frozen=True, eq=False)
class FusedFit:
    """What was fitted.

    Attributes:
        measures: What clean inputs answer.
        statistics: Which are fused.
        fusion: Their scales and views over all N blends.
        early: When to accept early.
        n_fitted: Images it was fitted on.
    """

    measures: Measures
    statistics: tuple[Statistic, ...]
    fusion: Fusion
    early: tuple[Early, ...]
    n_fitted: int

    def scores(
        self, measured: Float64[np.ndarray, "n m 4"], distances: Float64[np.ndarray, " n"] | None = None
    ) -> Float64[np.ndarray, " n"]:
        """Return the scores of inputs of which all N blends were measured.

        Args:
            measured: Of each blend.
            distances: Layer distance of each input, where that is one of the statistics.
        """
        return self.fusion.scores(self.measures.statistics(self.statistics, measured, distances))


def fused_rounds(n_overlays: int) -> tuple[int, ...]:
    """Return the round sizes 2, 2, 4, 8, 16, … that add up to ``n_overlays``.

    Examples:
        >>> fused_rounds(32), fused_rounds(3)
        ((2, 2, 4, 8, 16), (2, 1))
    """
    rounds: list[int] = []
    while sum(rounds) < n_overlays:
        rounds.append(min(max(2, sum(rounds)), n_overlays - sum(rounds)))
    return tuple(rounds)


def most_telling_first(
    predicted: Int64[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n m k"],
    overlay_classes: Int64[np.ndarray, " m"],
) -> Int64[np.ndarray, " m"]:
    """Return an order of overlays: each class once before any twice, the most predictable answers first.

    Where clean inputs of a class all answer nearly the same under an overlay, one that does not stands out
    at once. The order changes no score; it lets the first rounds tell more.

    Args:
        predicted: Class that the model gives to each clean input.
        probabilities: Of each under each overlay.
        overlay_classes: Class that the model gives to each overlay.
    """
    inputs, overlays, classes = probabilities.shape
    responses = fit_responses(predicted, probabilities)
    each = np.tile(np.arange(overlays, dtype=np.int64), inputs)
    rows = probabilities.reshape(-1, classes)
    departures = responses.departures(np.repeat(predicted, overlays), each, rows)
    spread = departures.reshape(inputs, overlays).mean(axis=0)
    order = np.argsort(spread, kind="stable")
    turn = np.empty(overlays, np.int64)
    for one in np.unique(overlay_classes):
        own = order[overlay_classes[order] == one]
        turn[own] = np.arange(len(own))
    return np.lexsort((spread, turn))


def fit_fused(
    predicted: Int64[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n m k"],
    entropies: Float32[np.ndarray, "n m"],
    overlay_classes: Int64[np.ndarray, " m"],
    rounds: tuple[int, ...],
    statistics: tuple[Statistic, ...] = DEFAULT_STATISTICS,
    layers: LayerDistances | None = None,
    distances: Float64[np.ndarray, " n"] | None = None,
) -> FusedFit:
    """Fit the detector; overlays are in the plan's order. Without two classes of them nothing is stratified.

    Args:
        predicted: Class that the model gives to each clean input.
        probabilities: Of each under each overlay.
        entropies: Of those, bits.
        overlay_classes: Class that the model gives to each overlay.
        rounds: Overlays in each round.
        statistics: Which are fused, beside the layer distance.
        layers: Gives the layer distance; None to look at no layers.
        distances: Layer distance of each input, as of one that was not fitted on; with ``layers`` alone.
    """
    measures = _measures(predicted, probabilities, overlay_classes, layers)
    chosen = tuple(name for name in statistics if measures.strata is not None or name != "stratified")
    if layers is not None:
        chosen = (*chosen, "layers")
    measured = _held_out(predicted, probabilities, entropies, overlay_classes)
    fusion = fit_views(chosen, measures.statistics(chosen, measured, distances))
    early = tuple(_early_rounds(measures, chosen, measured, distances, rounds))
    return FusedFit(measures, chosen, fusion, early, len(predicted))


def _measures(
    predicted: Int64[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n m k"],
    overlay_classes: Int64[np.ndarray, " m"],
    layers: LayerDistances | None = None,
) -> Measures:
    strata = None
    if len(np.unique(overlay_classes)) >= 2:
        kept = np.take_along_axis(probabilities, predicted[:, None, None], axis=2)[:, :, 0]
        strata = fit_strata(predicted, kept, overlay_classes, probabilities.shape[2])
    return Measures(fit_responses(predicted, probabilities), strata, layers)


def _held_out(
    predicted: Int64[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n m k"],
    entropies: Float32[np.ndarray, "n m"],
    overlay_classes: Int64[np.ndarray, " m"],
) -> Float64[np.ndarray, "n m 4"]:
    """Return what is measured of each input by what was fitted on others.

    Of inputs that were fitted on, the departure is lower than of new ones, the more so the fewer of a class.
    """
    part = np.arange(len(predicted)) % FOLDS
    measured = np.empty((*entropies.shape, COLUMNS))
    for one in np.unique(part):
        rest, own = part != one, part == one
        measures = _measures(predicted[rest], probabilities[rest], overlay_classes)
        measured[own] = measures.of_inputs(predicted[own], probabilities[own], entropies[own])
    return measured


def _early_rounds(
    measures: Measures,
    statistics: tuple[Statistic, ...],
    measured: Float64[np.ndarray, "n m 4"],
    distances: Float64[np.ndarray, " n"] | None,
    rounds: tuple[int, ...],
) -> list[Early]:
    known = tuple(name for name in statistics if name in KNOWN_EARLY)
    found = []
    for passes in accumulate(rounds[:-1]):
        if not known or passes not in ACCEPTED_EARLY:
            continue
        seen = measures.statistics(known, measured[:, :passes], distances)
        fusion = fit_views(known, seen)
        below = float(np.quantile(fusion.scores(seen), ACCEPTED_EARLY[passes]))
        found.append(Early(passes, fusion, below))
    return found
