"""TeCo-lite for one model: see :mod:`guard.detection.capabilities.teco_lite`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from calibration.capabilities.base import Bench, Fitted, Off
from calibration.capabilities.copies import kept_under
from guard.arrays import Images
from guard.detection.capabilities.teco_lite import (
    CORRUPTIONS,
    SEVERITIES,
    Robustness,
    corrupted,
    fit_robustness,
)

__all__ = ["PASSES", "fit_teco_lite"]

PASSES: Final = len(CORRUPTIONS) * SEVERITIES

LEAST_LOST: Final = 0.02
"""Probability of their class that corruptions take from clean inputs, at least; below it, they do nothing."""


@dataclass(frozen=True, eq=False)
class _TecoLite:
    bench: Bench
    robustness: Robustness

    @property
    def passes(self) -> int:
        return PASSES

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        predicted, kept = _asked(self.bench, images)
        return self.robustness.scores(predicted, kept)


def fit_teco_lite(bench: Bench) -> Fitted | Off:
    """Return TeCo-lite for the bench's model, or why it cannot tell anything there."""
    predicted, kept = _asked(bench, bench.images)
    with bench.open() as classifier:
        whole = bench.probabilities(classifier, bench.images).max(axis=1)
    lost = float((whole - kept.mean(axis=(1, 2))).mean())
    if lost < LEAST_LOST:
        return Off(
            f"corruptions do not touch what the model says of clean inputs (they take {lost:.3f} of the "
            f"probability, expected at least {LEAST_LOST}), so that they tell nothing"
        )
    return _TecoLite(bench, fit_robustness(predicted, kept, bench.sink.classes))


def _asked(bench: Bench, images: Images) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n d s"]]:
    """Return the class of each image and what is left of it, by corruption and severity."""
    changes = [
        partial(corrupted, name=name, severity=severity)
        for name in CORRUPTIONS
        for severity in range(SEVERITIES)
    ]
    with bench.open() as classifier:
        predicted = bench.predicted(classifier, images)
    kept = kept_under(bench, images, changes)
    return predicted, kept.reshape(len(images), len(CORRUPTIONS), SEVERITIES)
