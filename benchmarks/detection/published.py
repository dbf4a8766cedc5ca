"""STRIP as published: 100 overlays drawn anew for each input, and a Normal distribution's percentile.

Gao et al., STRIP, ACSAC 2019: image and overlay are added, the score is the mean entropy, and the boundary is
the percentile of a Normal distribution with the mean and deviation of clean scores. Fewer inputs are asked
here, as each costs 100 passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import stats

from benchmarks.detection.answers import Asking, triggered_images
from benchmarks.detection.figures import RATES, auroc, rates_at
from benchmarks.detection.network import Network
from guard.arrays import Images
from guard.detection.entropy import entropy_of_probabilities

__all__ = ["CALIBRATED", "FRESH", "NAME", "TRIGGERED", "as_published"]

NAME = "STRIP as published"
OVERLAYS, CALIBRATED, FRESH, TRIGGERED = 100, 200, 300, 100


def as_published(asking: Asking, *, ask: bool) -> dict[str, Any] | None:
    """Return the row of the tables; None if nothing is kept and nobody is to be asked."""
    if not (ask or asking.path(f"{asking.victim.name}-triggered-published").exists()):
        return None
    network = Network(asking.victim.model)
    clean = asking.kept(
        f"{asking.victim.network}-published", lambda: {"bits": _bits(asking, network, _clean(asking))}
    )["bits"]
    triggered = asking.kept(
        f"{asking.victim.name}-triggered-published",
        lambda: {"bits": _bits(asking, network, triggered_images(asking, network)[:TRIGGERED])},
    )["bits"]
    calibrated, fresh = clean[:CALIBRATED], clean[CALIBRATED:]
    row: dict[str, Any] = {"auroc": auroc(-fresh, -triggered)}
    for rate in RATES:
        boundary = stats.norm.ppf(rate, calibrated.mean(), calibrated.std())
        row |= rates_at(fresh < boundary, triggered < boundary, rate)
    return row | {"passes clean": float(OVERLAYS), "passes triggered": float(OVERLAYS), "fresh": FRESH}


def _clean(asking: Asking) -> Images:
    rows = np.concatenate([asking.parts.calibration[:CALIBRATED], asking.parts.fresh[:FRESH]])
    images: Images = asking.pool.images[rows]
    return images


def _bits(asking: Asking, network: Network, images: Images) -> Float64[np.ndarray, " n"]:
    """Return the mean entropy of each image under overlays of its own."""
    random, rows = np.random.default_rng(asking.seed), asking.parts.fit
    found = np.empty(len(images))
    for number, image in enumerate(images):
        overlays = asking.pool.images[random.choice(rows, OVERLAYS)]
        found[number] = entropy_of_probabilities(network.under(image[None], overlays, "add")).mean()
    return found
