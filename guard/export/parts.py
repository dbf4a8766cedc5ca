"""The parts that the image itself and its N overlays are cut into, one for each pass of the loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from onnx import TensorProto

from guard.runtime.node_list import NodeList

__all__ = ["Part", "Parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of one length.

    Attributes:
        overlays: Of each part; -1 is the image itself, which comes first and fills up the last one.
    """

    overlays: Int64[np.ndarray, "i g"]

    @classmethod
    def of(cls, n_overlays: int, most: int) -> Parts:
        """Cut the image itself and the overlays into parts of one length, at most ``most``.

        Args:
            n_overlays: N.
            most: Largest length of a part, at least 1.

        Raises:
            ValueError: If there is no overlay, or no room for one in a part.

        Examples:
            >>> Parts.of(3, 3).overlays.tolist()
            [[-1, 0], [1, 2]]
            >>> Parts.of(4, 3).overlays.tolist()
            [[-1, 0, 1], [2, 3, -1]]
        """
        if n_overlays < 1 or most < 1:
            raise ValueError(f"expected at least one overlay and one a part, got {n_overlays} and {most}")
        count = -(-(n_overlays + 1) // most)
        length = -(-(n_overlays + 1) // count)
        index = np.full(count * length, -1, np.int64)
        index[1 : n_overlays + 1] = np.arange(n_overlays)
        return cls(index.reshape(count, length))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.overlays)

    @property
    def length(self) -> int:
        """Overlays in each."""
        return int(self.overlays.shape[1])

    def weights(self, of_overlays: Float64[np.ndarray, "s m"]) -> Float64[np.ndarray, "i s g"]:
        """Return weights of overlays by part and place, 0 for the image itself."""
        there = self.overlays >= 0
        placed = np.where(there, of_overlays[:, np.where(there, self.overlays, 0)], 0.0)
        return np.ascontiguousarray(placed.transpose(1, 0, 2))


@dataclass(frozen=True)
class Part:
    """The names by which a body of the loop knows its part.

    Attributes:
        parts: All of them.
        number: Its number, int64 ().
        shape: g and n, int64 (2): pairs of overlay and image, the images running fastest.
        logits: What the model answers to the images themselves, float32 (n, k).
    """

    parts: Parts
    number: str
    shape: str
    logits: str

    def add_sums(self, g: NodeList, measured: str, of_overlays: np.ndarray, output: str) -> str:
        """Add weighted sums over the part's overlays.

        Args:
            g: The body's nodes.
            measured: Name of a number of each pair, float32 or float64 (g · n, or any shape of that size).
            of_overlays: Weights (s, N) of each overlay in each of s sums.
            output: Name of the sums, float64 (s, n).
        """
        name = output.removeprefix(g.prefix)
        table = g.node("Reshape", [measured, self.shape], output + "_table")
        wide = g.node("Cast", [table], output + "_fp64", to=TensorProto.DOUBLE)
        weights = g.constant(name + "_weights", self.parts.weights(of_overlays))
        weight = g.node("Gather", [weights, self.number], output + "_weight", axis=0)
        return g.node("MatMul", [weight, wide], output)
