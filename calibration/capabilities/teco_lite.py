"""TeCo-lite for one model: see :mod:`guard.detection.capabilities.teco_lite`."""

from __future__ import annotations

from typing import Final

from calibration.capabilities.base import Bench, Fitted, FittedOpinion, Off
from guard.detection.base import predicted_classes
from guard.detection.capabilities.teco_lite import (
    CORRUPTIONS,
    SEVERITIES,
    TecoLite,
    fit_robustness,
    kept_under_corruptions,
)

__all__ = ["PASSES", "fit_teco_lite"]

PASSES: Final = len(CORRUPTIONS) * SEVERITIES

LEAST_LOST: Final = 0.02
"""Probability of their class that corruptions take from clean inputs, at least; below it, they do nothing."""


def fit_teco_lite(bench: Bench) -> Fitted | Off:
    """Return TeCo-lite for the bench's model, or why it cannot tell anything there."""
    with bench.asked() as asked:
        whole = asked.model(bench.images)
        predicted = predicted_classes(whole)
        kept = kept_under_corruptions(bench.images, predicted, asked, bench.space)
    lost = float((whole.max(axis=1) - kept.mean(axis=(1, 2))).mean())
    if lost < LEAST_LOST:
        return Off(
            f"corruptions do not touch what the model says of clean inputs (they take {lost:.3f} of the "
            f"probability, expected at least {LEAST_LOST}), so that they tell nothing"
        )
    robustness = fit_robustness(predicted, kept, bench.sink.classes)
    return FittedOpinion(bench, TecoLite(bench.space, robustness))
