"""What goes to ART's own STRIP, in its own environment, and what comes back; see ``art_peer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection.answers import Asking, triggered_images
from benchmarks.detection.figures import RATES, auroc, rates_at
from benchmarks.detection.network import Network
from benchmarks.detection.published import CALIBRATED, FRESH, TRIGGERED

__all__ = ["NAME", "row_of_art", "write_bundle"]

NAME = "ART's STRIP"
SAMPLES = 20


def write_bundle(asking: Asking) -> None:
    """Write the images that ART is calibrated on and asked."""
    path = _path(asking, "bundle")
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    network, images, parts = Network(asking.victim.model), asking.pool.images, asking.parts
    np.savez(
        path,
        model=str(asking.victim.model),
        classes=network.classes,
        calibration=images[parts.calibration[:CALIBRATED]],
        clean=images[parts.fresh[:FRESH]],
        triggered=triggered_images(asking, network)[:TRIGGERED],
    )


def row_of_art(asking: Asking) -> dict[str, Any] | None:
    """Return the row of the tables; None while ART was not asked."""
    path = _path(asking, "answer")
    if not path.exists():
        return None
    with np.load(path) as stored:
        scores, rejected, count = stored["scores"], stored["rejected"], int(stored["clean"])
        seconds = float(stored["seconds_each"])
    row = {
        "auroc": auroc(scores[:count], scores[count:]),
        **rates_at(rejected[:count], rejected[count:], RATES[0]),
    }
    passes = {"passes clean": float(SAMPLES), "passes triggered": float(SAMPLES)}
    return row | passes | {"images per second": 1 / seconds, "fresh": count}


def _path(asking: Asking, kind: str) -> Path:
    return asking.cache / "art" / f"{asking.victim.name}-{asking.seed}.{kind}.npz"
