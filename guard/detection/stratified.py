r"""Class-stratified STRIP: a trigger that works on images of one class shows where an overlay has that class.

For an input that the model gives class t, let :math:`Q_c` be the mean probability of t under the overlays of
class c. Over clean inputs of class t it has a mean :math:`m_{t,c}` and a spread :math:`\sigma_c`, and

.. math:: z = \max_{c \ne t} \frac{Q_c - m_{t,c}}{\sigma_c}

is high where the overlays of one class, other than t's own, leave the prediction as it was more than they
leave that of clean inputs. The mean over all overlays, which STRIP takes, hides that.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def scores(
        self, predicted: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n m k"]
    ) -> Float64[np.ndarray, " n"]:
        """Return z of each input; higher is more suspicious.

        Args:
            predicted: Class that the model gives to each input itself.
            probabilities: Of each input under each overlay.
        """
        kept = _kept(predicted, probabilities, self.overlay_classes, self.classes)
        standardised = (kept - self.means[predicted]) / self.spreads
        own = self.classes[None] == predicted[:, None]
        highest: np.ndarray = np.where(own, -np.inf, standardised).max(axis=1)
        return highest


def fit_strata(
    predicted: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n m k"],
    overlay_classes: Int64[np.ndarray, " m"],
) -> Strata:
    """Return what the overlays of each class leave of these inputs' predictions; they must be clean.

    Args:
        predicted: Class that the model gives to each input itself.
        probabilities: Of each input under each overlay.
        overlay_classes: Class of each overlay.

    Raises:
        ValueError: If there are fewer than two inputs, or overlays of fewer than two classes.
    """
    classes = np.unique(overlay_classes)
    if len(classes) < 2:
        raise ValueError(f"overlay_classes: expected overlays of two classes or more, got {len(classes)}")
    if len(predicted) < 2:
        raise ValueError(f"predicted: expected two clean inputs or more, got {len(predicted)}")
    kept = _kept(predicted, probabilities, overlay_classes, classes)
    sums = np.zeros((probabilities.shape[2], len(classes)))
    np.add.at(sums, predicted, kept)
    seen = np.bincount(predicted, minlength=len(sums))[:, None]
    means = (sums + SHRINKAGE * kept.mean(axis=0)) / (seen + SHRINKAGE)
    spreads = np.maximum((kept - means[predicted]).std(axis=0), _LEAST_SPREAD)
    return Strata(overlay_classes, classes, means, spreads)


def _kept(
    predicted: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n m k"],
    overlay_classes: Int64[np.ndarray, " m"],
    classes: Int64[np.ndarray, " s"],
) -> Float64[np.ndarray, "n s"]:
    """Return the mean probability of each input's own class under the overlays of each class."""
    rows = np.arange(len(predicted))
    of_own = probabilities[rows, :, predicted].astype(np.float64)
    return np.stack([of_own[:, overlay_classes == one].mean(axis=1) for one in classes], axis=1)
