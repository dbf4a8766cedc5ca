r"""IBD-PSC: a triggered input keeps its class when the model's last layers are amplified, others lose it.

.. math:: s = \frac{\mathrm{PSC} - m_t}{\sigma}, \qquad \mathrm{PSC} = \frac15 \sum_{j=1}^{5} f^{(j)}_t(x),

where :math:`f^{(j)}` are copies of the model in which scale and shift of the last k, k + 1, … norm layers
are ω times as large, t the class of x in the model itself, and m and σ mean and spread of clean inputs. One
pass for each copy.

References:
    Hou et al., IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency, ICML 2024.

**Deviations:** PSC is standardised by predicted class, for amplified copies drift to some classes with all
inputs; what the paper does with labels is done with the model's own predictions; ω is searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int64

from guard.arrays import Images
from guard.detection.capabilities.by_class import ClassMeans, fit_class_means
from guard.detection.capabilities.opinion import Asked

__all__ = ["COPIES", "Consistency", "IbdPsc", "fit_consistency", "kept_by_copies"]

COPIES: Final = 5
"""Amplified copies of the model."""

_LEAST_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class Consistency:
    """How amplified copies answer clean inputs.

    Attributes:
        means: Mean PSC by predicted class.
        spread: σ, above 0.
    """

    means: ClassMeans
    spread: float

    def scores(
        self, predicted: Int64[np.ndarray, " n"], kept: Float[np.ndarray, "n j"]
    ) -> Float64[np.ndarray, " n"]:
        """Return the score of each input, higher is more suspicious.

        Args:
            predicted: Class that the model itself gives to each input.
            kept: Probability of that class, by each amplified copy.
        """
        consistency = kept.mean(axis=1, dtype=np.float64)[:, None]
        scores: np.ndarray = self.means.away(predicted, consistency)[:, 0] / self.spread
        return scores


def fit_consistency(
    predicted: Int64[np.ndarray, " n"], kept: Float[np.ndarray, "n j"], classes: int
) -> Consistency:
    """Return how amplified copies answer inputs like these, which must be clean."""
    consistency = kept.mean(axis=1, dtype=np.float64)[:, None]
    means = fit_class_means(predicted, consistency, classes)
    return Consistency(means, max(float(means.away(predicted, consistency).std()), _LEAST_SPREAD))


@dataclass(frozen=True, eq=False)
class IbdPsc:
    """It for one model, whose amplified copies lie beside it.

    Attributes:
        consistency: How those answer clean inputs.
    """

    consistency: Consistency

    @property
    def passes(self) -> int:
        """One for each copy."""
        return COPIES

    @property
    def asks_copies(self) -> bool:
        """Yes."""
        return True

    def scores(
        self, images: Images, predicted: Int64[np.ndarray, " n"], asked: Asked
    ) -> Float64[np.ndarray, " n"]:
        """Return the score of each input; see :class:`~guard.detection.capabilities.opinion.Opinion`.

        Raises:
            ValueError: If there are no copies to ask.
        """
        return self.consistency.scores(predicted, kept_by_copies(images, predicted, asked))


def kept_by_copies(
    images: Images, predicted: Int64[np.ndarray, " n"], asked: Asked
) -> Float[np.ndarray, "n j"]:
    """Return the probability that each amplified copy leaves each input's own class.

    Raises:
        ValueError: If there are no copies to ask.
    """
    if asked.copies is None:
        raise ValueError("asked.copies: expected amplified copies of the model, got none")
    kept: np.ndarray = asked.copies(images)[np.arange(len(images)), :, predicted]
    return kept
