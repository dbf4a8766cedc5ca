"""What a detector adds to the guarded graph: sums over blends within the loop, and a value after it.

The value of an image is minus its score, so that small is suspicious: STRIP's mean entropy in bits, or
minus the fused detector's score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from guard.detection.capabilities.layer_distances import Layer
from guard.export.parts import Part
from guard.runtime.check_graph import ENTROPY
from guard.runtime.node_list import NodeList

__all__ = ["Seen", "WholeDetector", "WholeStrip", "add_entropy_sum"]


@dataclass(frozen=True)
class Seen:
    """The names of what the loop leaves.

    Attributes:
        sums: Over all N overlays, float64 (s, n).
        logits: What the model answers to the images themselves, float32 (n, k).
        features: The layers' activations for the images themselves, float32 (n, d); None without layers.
    """

    sums: str
    logits: str
    features: str | None


@runtime_checkable
class WholeDetector(Protocol):
    """A detector in a graph that runs all N blends."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Activations that it needs of the images themselves."""
        ...

    @property
    def n_sums(self) -> int:
        """How many sums over blends it needs."""
        ...

    def add_part_sums(self, g: NodeList, part: Part) -> str:
        """Add, within the loop, the sums over a part's overlays; return their name, float64 (s, n)."""
        ...

    def add_values(self, g: NodeList, seen: Seen) -> tuple[str, list[str]]:
        """Add, after the loop, what was seen comes to.

        Args:
            g: The graph's nodes.
            seen: What the loop leaves.

        Returns:
            Names of the values, float64 (n, 1), and of conditions, bool (n, 1), without all of which an image
            was not checked; a value that is not finite need not be among them.
        """
        ...


@dataclass(frozen=True)
class WholeStrip:
    """STRIP: the mean entropy.

    Attributes:
        n_overlays: N.
    """

    n_overlays: int

    @property
    def layers(self) -> tuple[Layer, ...]:
        """None."""
        return ()

    @property
    def n_sums(self) -> int:
        """One: of entropies."""
        return 1

    def add_part_sums(self, g: NodeList, part: Part) -> str:
        """Add the sums of entropies."""
        return add_entropy_sum(g, part, self.n_overlays)

    def add_values(self, g: NodeList, seen: Seen) -> tuple[str, list[str]]:
        """Add the mean entropies."""
        count = g.constant("n_overlays", np.array(self.n_overlays, np.float64))
        column = g.constant("column", np.array([-1, 1], np.int64))
        mean = g.node("Div", [seen.sums, count], g.prefix + "mean")
        return g.node("Reshape", [mean, column], g.prefix + "value"), []


def add_entropy_sum(g: NodeList, part: Part, n_overlays: int) -> str:
    """Add the sums of a part's entropies, float64 (1, n) in bits; NaN stays NaN."""
    zero = g.constant("zero", np.array(0.0, np.float32))
    negative = g.node("Less", [ENTROPY, zero], g.prefix + "negative")
    bits = g.node("Where", [negative, zero, ENTROPY], g.prefix + "bits")
    return part.add_sums(g, bits, np.ones((1, n_overlays)), g.prefix + "entropy")
