"""SCALE-UP for one model: see :mod:`guard.detection.capabilities.scale_up`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from calibration.capabilities.base import Bench, Fitted, Off
from calibration.capabilities.copies import kept_under
from guard.arrays import Images
from guard.detection.capabilities.scale_up import FACTORS, amplified, scale_up_scores

__all__ = ["fit_scale_up"]

MOST_KEPT: Final = 0.9
"""Mean probability of their class that amplified clean inputs may keep; above it, triggers have no room."""


@dataclass(frozen=True, eq=False)
class _ScaleUp:
    bench: Bench

    @property
    def passes(self) -> int:
        return len(FACTORS)

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        copies = [lambda unit, factor=factor: amplified(unit, factor) for factor in FACTORS]
        return scale_up_scores(kept_under(self.bench, images, copies))


def fit_scale_up(bench: Bench) -> Fitted | Off:
    """Return SCALE-UP for the bench's model, or why it cannot tell anything there."""
    fitted = _ScaleUp(bench)
    kept = float(fitted.scores(bench.images).mean())
    if kept > MOST_KEPT:
        return Off(
            f"clean inputs keep their class when amplified (with probability {kept:.2f}, expected at most "
            f"{MOST_KEPT}), so that a triggered one cannot stand out"
        )
    return fitted
