"""What clean inputs of each predicted class show, and how far an input is from it: shared by capabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

__all__ = ["ClassMeans", "fit_class_means"]

SHRINKAGE = 5.0
"""Inputs of any class that each class's mean is drawn from, beside its own."""


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Means of a few numbers over clean inputs, by the class that the model gives them."""

    means: Float64[np.ndarray, "k d"]

    def away(
        self, predicted: Int64[np.ndarray, " n"], values: Float[np.ndarray, "n d"]
    ) -> Float64[np.ndarray, "n d"]:
        """Return by how much the numbers of inputs exceed those of clean inputs of their class."""
        away: np.ndarray = values.astype(np.float64) - self.means[predicted]
        return away


def fit_class_means(
    predicted: Int64[np.ndarray, " n"], values: Float[np.ndarray, "n d"], classes: int
) -> ClassMeans:
    """Return the means; that of a class that few inputs are given is drawn to the mean of all.

    Raises:
        ValueError: If there is no input.
    """
    if not len(values):
        raise ValueError("values: expected those of one clean input at least, got none")
    sums = np.zeros((classes, values.shape[1]))
    np.add.at(sums, predicted, values)
    seen = np.bincount(predicted, minlength=classes)[:, None]
    return ClassMeans((sums + SHRINKAGE * values.mean(axis=0, dtype=np.float64)) / (seen + SHRINKAGE))
