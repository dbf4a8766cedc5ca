"""What every detector has in common: measure blends, gather evidence round by round, decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Int64

from guard.arrays import EntropyBits, Logits
from guard.detection.capabilities.layer_distances import LayerDistances
from guard.detection.plan import CheckPlan

__all__ = ["Decision", "Detector", "Evidence", "predicted_classes"]


class Decision(Enum):
    """What the check makes of an input."""

    CLEAN = "clean"
    DOUBTFUL = "doubtful"
    """Beyond the boundary for flags, but not beyond the one for refusals, where a model has two."""
    SUSPICIOUS = "suspicious"
    FAILED = "failed"
    """A measurement was not finite, so nothing can be said."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one input so far.

    Attributes:
        entropy_sum: Sum of the entropies seen, bits.
        passes: Number of blends seen.
        distance: Layer distance of the input itself; None where the detector looks at no layers.
        sums: Of what else was measured of the blends seen, those that the detector needs after each round.
        measured: All that was measured, an array a round.
        scored: Score of the blends seen, and whether it accepts the input early; None where the detector has
            not worked it out yet.
    """

    entropy_sum: float = 0.0
    passes: int = 0
    distance: float | None = None
    sums: tuple[float, ...] = ()
    measured: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)
    scored: tuple[float, bool] | None = field(default=None, compare=False)


@runtime_checkable
class Detector(Protocol):
    """Measures blends, and decides of an input by what was measured of its own.

    Attributes:
        by_class: Whether :meth:`measure` reads the classes, which are not worked out otherwise.
    """

    by_class: ClassVar[bool]

    @property
    def layers(self) -> LayerDistances | None:
        """What scores the input itself inside the model, before its first round; None for nothing."""
        ...

    @property
    def plan(self) -> CheckPlan:
        """Which overlays are tried in which round."""
        ...

    def measure(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        logits: Logits,
        entropies: EntropyBits,
    ) -> Float[np.ndarray, "p *d"]:
        """Return what is measured of each blend, which may be of different inputs.

        Args:
            predicted: Class that the model gives to the blended input itself; -1 where it has none.
            overlays: Which overlay it was blended with, in the plan's order.
            logits: What the model answers to the blend.
            entropies: Entropy of that, bits.
        """
        ...

    def update(self, evidence: Evidence, measured: Float[np.ndarray, "r *d"]) -> Evidence:
        """Return the evidence after the next round's blends, in the plan's order of overlays."""
        ...

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return the decision, or None while the next round is still needed."""
        ...

    def score(self, evidence: Evidence) -> float:
        """Return the score, higher is more suspicious; what it is before all N blends, the detector says."""
        ...

    def p_value(self, evidence: Evidence, clean_values: Float64[np.ndarray, " n"]) -> float:
        """Return the conformal p-value of a decided input; small is suspicious.

        Args:
            evidence: Of the input.
            clean_values: Minus the scores over all N blends of clean inputs, ascending.
        """
        ...


def predicted_classes(logits: Logits) -> Int64[np.ndarray, " n"]:
    """Return the class of each row, -1 where a score is not finite."""
    classes: np.ndarray = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    return classes
