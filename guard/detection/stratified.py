r"""Class-stratified STRIP: a trigger that works on images of one class shows where an overlay has that class.

For an input that the model gives class t, let :math:`Q_c` be the mean probability of t under the overlays of
class c. Over clean inputs of class t it has a mean :math:`m_{t,c}` and a spread :math:`\sigma_c`, and

.. math:: z = \max_{c \ne t} \frac{Q_c - m_{t,c}}{\sigma_c}

is high where the overlays of one class, other than t's own, leave the prediction as it was more than they
leave that of clean inputs. The mean over all overlays, which STRIP takes, hides that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64, Int64

__all__ = ["Strata", "fit_strata"]

SHRINKAGE = 5.0
"""Inputs of any class that each class's mean is drawn from, beside its own."""

_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, eq=False)
class Strata:
    """What the overlays of each class leave of clean predictions.

    Attributes:
        overlay_classes: Class of each overlay.
        classes: The classes that overlays have, rising.
        means: m, by the input's predicted class and the overlays' class.
        spreads: σ, by the overlays' class.
    """

    overlay_classes: Int64[np.ndarray, " m"]
    classes: Int64[np.ndarray, " s"]
    means: Float64[np.ndarray, "k s"]
    spreads: Float64[np.ndarray, " s"]

    def residuals(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        kept: Float[np.ndarray, " p"],
    ) -> Float64[np.ndarray, " p"]:
        """Return how far above clean inputs each blend keeps its input's class, in spreads.

        Args:
            predicted: Class that the model gives to the blended input itself.
            overlays: Which overlay it was blended with.
            kept: Probability of the input's class.

        Returns:
            Minus infinity where the overlay is of the input's own class, which says nothing.
        """
        stratum = self._stratum[overlays]
        residuals = (kept - self.means[predicted, stratum]) / self.spreads[stratum]
        own: np.ndarray = np.where(self.overlay_classes[overlays] == predicted, -np.inf, residuals)
        return own

    def highest(self, residuals: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, " n"]:
        """Return z of each input, from the residuals of its blends; higher is more suspicious."""
        ordered = residuals[:, self._by_class]
        highest: np.ndarray = (np.add.reduceat(ordered, self._firsts, axis=1) / self._counts).max(axis=1)
        return highest

    @cached_property
    def _stratum(self) -> Int64[np.ndarray, " m"]:
        return np.searchsorted(self.classes, self.overlay_classes)

    @cached_property
    def _by_class(self) -> Int64[np.ndarray, " m"]:
        """Return the overlays, those of a class side by side."""
        return np.argsort(self._stratum, kind="stable")

    @cached_property
    def _counts(self) -> Int64[np.ndarray, " s"]:
        return np.bincount(self._stratum)

    @cached_property
    def _firsts(self) -> Int64[np.ndarray, " s"]:
        """Return where the overlays of each class begin among those in order."""
        firsts: np.ndarray = np.cumsum(self._counts) - self._counts
        return firsts


def fit_strata(
    predicted: Int64[np.ndarray, " n"],
    kept: Float[np.ndarray, "n m"],
    overlay_classes: Int64[np.ndarray, " m"],
    classes: int,
) -> Strata:
    """Return what the overlays of each class leave of these inputs' predictions; they must be clean.

    Args:
        predicted: Class that the model gives to each input itself.
        kept: Probability of that class under each overlay.
        overlay_classes: Class of each overlay.
        classes: k, how many the model has.

    Raises:
        ValueError: If there are fewer than two inputs, or overlays of fewer than two classes.
    """
    strata = np.unique(overlay_classes)
    if len(strata) < 2:
        raise ValueError(f"overlay_classes: expected overlays of two classes or more, got {len(strata)}")
    if len(predicted) < 2:
        raise ValueError(f"predicted: expected two clean inputs or more, got {len(predicted)}")
    means_of_inputs = _by_stratum(kept, overlay_classes, strata)
    sums = np.zeros((classes, len(strata)))
    np.add.at(sums, predicted, means_of_inputs)
    seen = np.bincount(predicted, minlength=classes)[:, None]
    means = (sums + SHRINKAGE * means_of_inputs.mean(axis=0)) / (seen + SHRINKAGE)
    spreads = np.maximum((means_of_inputs - means[predicted]).std(axis=0), _LEAST_SPREAD)
    return Strata(overlay_classes, strata, means, spreads)


def _by_stratum(
    kept: Float[np.ndarray, "n m"],
    overlay_classes: Int64[np.ndarray, " m"],
    classes: Int64[np.ndarray, " s"],
) -> Float64[np.ndarray, "n s"]:
    """Return the mean probability of each input's own class under the overlays of each class."""
    of_own = kept.astype(np.float64)
    return np.stack([of_own[:, overlay_classes == one].mean(axis=1) for one in classes], axis=1)
