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

import numpy as np
from jaxtyping import Float, Float64, Int64

from guard.detection.capabilities.by_class import ClassMeans, fit_class_means

__all__ = ["Consistency", "fit_consistency"]

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
