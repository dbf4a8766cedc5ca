r"""SCALE-UP: a triggered input keeps its class when its pixels are amplified, a clean one loses it.

.. math:: s = \frac{1}{|S|} \sum_{n \in S} f_t\bigl(\mathrm{clip}(n\,x)\bigr), \qquad S = \{3, 5, 7, 9, 11\},

with t the class of x itself and black at 0. Black-box, one pass for each factor.

References:
    Guo et al., SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled
    Prediction Consistency, ICLR 2023.

**Deviations:** the paper counts copies that keep the class, six levels at most, which cannot sit at a
false-rejection rate of 1 %; here it is the mean probability of the class. Its data-limited form standardises
by class, which told triggers worse where amplified clean images fall into the attacker's class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from guard.arrays import Images
from guard.detection.capabilities.opinion import Asked, Space, kept_under

__all__ = ["FACTORS", "ScaleUp", "amplified", "scale_up_scores"]

FACTORS: Final = (3.0, 5.0, 7.0, 9.0, 11.0)


@dataclass(frozen=True)
class ScaleUp:
    """It for models of one input space; nothing is fitted."""

    space: Space

    @property
    def passes(self) -> int:
        """One for each factor."""
        return len(FACTORS)

    @property
    def asks_copies(self) -> bool:
        """No: the copies are of images."""
        return False

    def scores(
        self, images: Images, predicted: Int64[np.ndarray, " n"], asked: Asked
    ) -> Float64[np.ndarray, " n"]:
        """Return the score of each input; see :class:`~guard.detection.capabilities.opinion.Opinion`."""
        changes = [partial(amplified, factor=factor) for factor in FACTORS]
        return scale_up_scores(kept_under(asked, images, predicted, self.space, changes))


def amplified(images: Float32[np.ndarray, "n c h w"], factor: float) -> Float32[np.ndarray, "n c h w"]:
    """Return images that many times as bright, cut off at the brightest value.

    Args:
        images: Within [0, 1].
        factor: How many times as bright.
    """
    bright: np.ndarray = np.minimum(images * np.float32(factor), np.float32(1.0))
    return bright


def scale_up_scores(kept: Float[np.ndarray, "n s"]) -> Float64[np.ndarray, " n"]:
    """Return the score of each input, higher is more suspicious.

    Args:
        kept: Probability of the input's own class, for each of its amplified copies.
    """
    scores: np.ndarray = kept.mean(axis=1, dtype=np.float64)
    return scores
