"""Whether scores of clean inputs can hold a false-rejection rate."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.stats import ks_2samp

__all__ = ["LEAST_IMAGES", "unfit_scores"]

LEAST_IMAGES: Final = 100
"""Clean images that a capability is fitted and tried on, at least."""

SAME_AT: Final = 1e-3
"""Chance at which the scores of two halves are taken to be differently distributed."""


def unfit_scores(scores: Float64[np.ndarray, " n"], frr: float) -> str:
    """Return what is wrong with scores of clean inputs that were not fitted on; nothing if all is well."""
    if not np.isfinite(scores).all():
        return "some clean inputs have no finite score"
    highest = np.quantile(scores, 1 - frr)
    tied = float((scores >= highest).mean())
    if tied > max(2 * frr, 3 / len(scores)):
        return (
            f"its scores are too coarse for a rate of {frr:.2%}: {tied:.1%} of clean inputs share those "
            f"that only so many should have"
        )
    order = np.random.default_rng(0).permutation(len(scores))
    one, other = np.array_split(scores[order], 2)
    chance = float(ks_2samp(one, other).pvalue)
    if chance < SAME_AT:
        return (
            f"two halves of the clean images have other scores (p = {chance:.1g}), so that a boundary set on "
            f"one would not hold on the other"
        )
    return ""
