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

from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Float64

__all__ = ["FACTORS", "amplified", "scale_up_scores"]

FACTORS: Final = (3.0, 5.0, 7.0, 9.0, 11.0)


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
