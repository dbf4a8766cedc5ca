"""Shannon entropy of predictions, in bits."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

__all__ = ["entropy_of_logits", "entropy_of_probabilities", "softmax"]

_TINY = np.finfo(np.float32).tiny


def softmax(logits: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch k"]:
    r"""Return the softmax over the last axis, computed without overflow.

    .. math:: p_j = e^{z_j - \max z} / \sum_l e^{z_l - \max z}

    Args:
        logits: Any finite values; the dtype is kept.

    Returns:
        Probabilities of the same shape, each row summing to 1.
    """
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def entropy_of_probabilities(
    probabilities: Float[np.ndarray, "*batch k"],
) -> Float[np.ndarray, "*batch"]:
    r"""Return the Shannon entropy of each row of class probabilities, in bits.

    .. math:: H(p) = -\sum_{j=1}^{k} p_j \log_2 p_j, \qquad 0 \log_2 0 := 0

    Args:
        probabilities: Non-negative; each row over the last axis sums to 1. This is the hot
            path, so it is not verified here: the runtime refuses models whose rows do not.

    Returns:
        Entropy per row, in bits, within ``[0, log2(k)]``; never negative, NaN where a row
        holds NaN.

    Examples:
        >>> entropy_of_probabilities(np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)).tolist()
        [0.0, 1.0]

    References:
        Gao et al., STRIP: A Defence Against Trojan Attacks on Deep Neural Networks,
        ACSAC 2019, eq. 2.
    """
    bits = probabilities * np.log2(np.maximum(probabilities, _TINY))
    return np.asarray(np.maximum(-bits.sum(axis=-1), 0.0))


def entropy_of_logits(logits: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch"]:
    """Return the entropy, in bits, of the softmax of each row of logits.

    Args:
        logits: Finite values over the last axis.

    Returns:
        Entropy per row, in bits, within ``[0, log2(k)]``.

    Examples:
        >>> entropy_of_logits(np.array([[0.0, 0.0, 0.0, 0.0]], np.float32)).tolist()
        [2.0]
    """
    return entropy_of_probabilities(softmax(logits))
