"""What the fused detector measures of each input and blend, and the statistics of an input that they make."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from guard.detection.capabilities.layer_distances import LayerDistances
from guard.detection.responses import Responses
from guard.detection.stratified import Strata

__all__ = ["COLUMNS", "KNOWN_EARLY", "MEANS", "STATISTICS", "Measures", "Statistic"]

Statistic = Literal["departure", "entropy", "stratified", "surprise", "strip", "layers"]
STATISTICS: Final[tuple[Statistic, ...]] = (
    "departure",
    "entropy",
    "stratified",
    "surprise",
    "strip",
    "layers",
)
"""``entropy`` is the mean entropy, ``strip`` minus the same; the others are told in the modules of
:class:`Responses`, :class:`Strata` and :class:`LayerDistances`. Higher is more suspicious."""

MEANS: Final = MappingProxyType({"departure": 1, "surprise": 2, "entropy": 0, "strip": 0})
"""Column of each statistic that is a mean over blends, and so says something before all are seen."""

KNOWN_EARLY: Final = frozenset({*MEANS, "layers"})
"""Those that say something before all blends are seen: means, and what the input itself tells."""

ENTROPY, RESIDUAL, COLUMNS = 0, 3, 4


@dataclass(frozen=True, eq=False)
class Measures:
    """What clean inputs answer, by which blends are measured.

    Attributes:
        responses: What is expected under each overlay.
        strata: What the overlays of each class leave; None where they have one class alone.
        layers: What clean inputs look like inside the model; None where nobody looks.
    """

    responses: Responses
    strata: Strata | None
    layers: LayerDistances | None = None

    def of_blends(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        probabilities: Float[np.ndarray, "p k"],
        entropies: Float[np.ndarray, " p"],
        *,
        surprise: bool = True,
    ) -> Float64[np.ndarray, "p 4"]:
        """Return entropy, departure, surprise and stratified residual of each blend.

        NaN where the input has no class. Overlay -1, the input itself, may be among them; what is
        measured of it means nothing.

        Args:
            predicted: Class that the model gives to the blended input itself; -1 for none.
            overlays: Which overlay it was blended with.
            probabilities: What the model answers.
            entropies: Entropy of that, bits.
            surprise: Whether that is wanted; it is 0 where it is not.
        """
        measured = np.zeros((len(predicted), COLUMNS))
        measured[:, ENTROPY] = np.maximum(entropies, 0.0)
        measured[:, 1] = self.responses.departures(predicted, overlays, probabilities)
        if surprise:
            measured[:, 2] = self.responses.surprises(predicted, overlays, probabilities)
        if self.strata is not None:
            kept = probabilities[np.arange(len(predicted)), predicted]
            measured[:, RESIDUAL] = self.strata.residuals(predicted, overlays, kept)
        measured[predicted < 0] = np.nan
        return measured

    def of_inputs(
        self,
        predicted: Int64[np.ndarray, " n"],
        probabilities: Float[np.ndarray, "n m k"],
        entropies: Float[np.ndarray, "n m"],
    ) -> Float64[np.ndarray, "n m 4"]:
        """Return the same of every input under every overlay, in the order of overlays."""
        inputs, overlays = entropies.shape
        each = np.tile(np.arange(overlays, dtype=np.int64), inputs)
        rows = probabilities.reshape(inputs * overlays, -1)
        measured = self.of_blends(np.repeat(predicted, overlays), each, rows, entropies.reshape(-1))
        return measured.reshape(inputs, overlays, COLUMNS)

    def statistics(
        self,
        names: tuple[Statistic, ...],
        measured: Float64[np.ndarray, "n m 4"],
        distances: Float64[np.ndarray, " n"] | None = None,
    ) -> Float64[np.ndarray, "n s"]:
        """Return the statistics of inputs of which all blends, or the first ones, were measured.

        Args:
            names: Which.
            measured: Of each blend.
            distances: Layer distance of each input.

        Raises:
            ValueError: If ``stratified`` is asked for without strata, or ``layers`` without distances.
        """
        columns = []
        for name in names:
            if name == "layers":
                if distances is None:
                    raise ValueError("layers: expected the layer distance of each input, got none")
                columns.append(distances)
            elif name != "stratified":
                mean = measured[:, :, MEANS[name]].mean(axis=1)
                columns.append(-mean if name == "strip" else mean)
            elif self.strata is None:
                raise ValueError("stratified: expected overlays of two classes or more")
            else:
                columns.append(self.strata.highest(measured[:, :, RESIDUAL]))
        return np.stack(columns, axis=1)
