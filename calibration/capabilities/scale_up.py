"""SCALE-UP for one model: see :mod:`guard.detection.capabilities.scale_up`."""

from __future__ import annotations

from typing import Final

from calibration.capabilities.base import Bench, Fitted, FittedOpinion, Off
from guard.detection.capabilities.scale_up import ScaleUp

__all__ = ["fit_scale_up"]

MOST_KEPT: Final = 0.9
"""Mean probability of their class that amplified clean inputs may keep; above it, triggers have no room."""


def fit_scale_up(bench: Bench) -> Fitted | Off:
    """Return SCALE-UP for the bench's model, or why it cannot tell anything there."""
    fitted = FittedOpinion(bench, ScaleUp(bench.space))
    kept = float(fitted.scores(bench.images).mean())
    if kept > MOST_KEPT:
        return Off(
            f"clean inputs keep their class when amplified (with probability {kept:.2f}, expected at most "
            f"{MOST_KEPT}), so that a triggered one cannot stand out"
        )
    return fitted
