r"""What clean inputs answer under each overlay, and how far an input departs from it.

STRIP looks at how certain a model is of blends, and sees nothing of *what* it is certain of. From the same
passes more can be read. Let t be the class that the model gives to the input itself, and :math:`q_i` its
probabilities for the input under overlay i. Over clean inputs of that class they have a mean,

.. math:: e_{t,i} = \mathbb{E}[\,q_i \mid t\,],

and an input that carries a trigger departs from it: a trigger that works on every image pulls all blends to
one class, one that works on images of a source class pulls the blends with overlays of that class, and one
that moves every class to its neighbour leads blends to the neighbours of the overlays' classes. Two
statistics tell by how much. The *departure* is the mean squared Hellinger distance

.. math:: D = \frac1N \sum_i \tfrac12 \sum_j \bigl(\sqrt{q_{ij}} - \sqrt{e_{t,ij}}\bigr)^2 \in [0, 1],

and the *surprise* the mean cross-entropy in bits, which also sees predictions that are less certain than
those of clean inputs, where the departure of one is within what clean inputs show,

.. math:: S = -\frac1N \sum_i \sum_j q_{ij} \log_2\bigl((1 - \epsilon)\,e_{t,ij} + \epsilon / k\bigr).

Both are means over blends of numbers that are never negative, so partial sums only grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

__all__ = ["Responses", "fit_responses"]

EPSILON = 1e-3
"""Share of a surprise's expectation that is uniform, so that no answer is infinitely surprising."""

SHRINKAGE = 20.0
"""Inputs of any class that each class's expectation is drawn from, beside its own."""


@dataclass(frozen=True, eq=False)
class Responses:
    """What is expected of clean inputs.

    Attributes:
        expected: Mean probabilities of clean inputs by their own predicted class and the overlay they are
            under, each row summing to 1.
    """

    expected: Float32[np.ndarray, "k m k"]

    def departures(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        probabilities: Float[np.ndarray, "p k"],
    ) -> Float64[np.ndarray, " p"]:
        """Return the squared Hellinger distance of each blend's answer from what is expected, in [0, 1].

        Args:
            predicted: Class that the model gives to the blended input itself.
            overlays: Which overlay it was blended with.
            probabilities: What the model answers.
        """
        overlap = (np.sqrt(probabilities) * self._roots[predicted, overlays]).sum(axis=1, dtype=np.float64)
        departures: np.ndarray = np.clip(1.0 - overlap, 0.0, 1.0)
        return departures

    def surprises(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        probabilities: Float[np.ndarray, "p k"],
    ) -> Float64[np.ndarray, " p"]:
        """Return the cross-entropy of each blend's answer with what is expected, in bits, never negative.

        Args:
            predicted: Class that the model gives to the blended input itself.
            overlays: Which overlay it was blended with.
            probabilities: What the model answers.
        """
        bits = (probabilities * self._bits[predicted, overlays]).sum(axis=1, dtype=np.float64)
        surprises: np.ndarray = np.maximum(bits, 0.0)
        return surprises

    @cached_property
    def _roots(self) -> Float32[np.ndarray, "k m k"]:
        roots: np.ndarray = np.sqrt(self.expected)
        return roots

    @cached_property
    def _bits(self) -> Float32[np.ndarray, "k m k"]:
        mixed = (1 - EPSILON) * self.expected.astype(np.float64) + EPSILON / self.expected.shape[0]
        bits: np.ndarray = -np.log2(np.minimum(mixed, 1.0))
        return bits.astype(np.float32)


def fit_responses(predicted: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n m k"]) -> Responses:
    """Return what is expected of inputs like these, which must be clean.

    The mean of a class that few inputs are given is drawn to the mean of all, and equals it where none is.

    Args:
        predicted: Class that the model gives to each input itself.
        probabilities: Of each input under each overlay, rows summing to 1.

    Raises:
        ValueError: If there is no input, or a class is none of the model's.
    """
    count, overlays, classes = probabilities.shape
    if not count:
        raise ValueError("probabilities: expected those of one clean input at least, got none")
    if predicted.min() < 0 or predicted.max() >= classes:
        raise ValueError(f"predicted: expected classes from 0 to {classes - 1}, got {predicted.max()}")
    whole = probabilities.mean(axis=0, dtype=np.float64)
    sums = np.zeros((classes, overlays, classes))
    np.add.at(sums, predicted, probabilities)
    seen = np.bincount(predicted, minlength=classes)[:, None, None]
    expected = (sums + SHRINKAGE * whole) / (seen + SHRINKAGE)
    return Responses(expected.astype(np.float32))
