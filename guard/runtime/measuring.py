"""What a device call says of each image in it, as the detector reads it. Pure: it changes no row.

All images of a batch are measured in one go, whoever sent them, so it costs little more than for one. Nothing
here needs the lock of the line, under which callers would have to wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from guard.arrays import EntropyBits, Features, Logits
from guard.detection.base import Detector, predicted_classes
from guard.runtime.batch import Batch

__all__ = ["Measured", "measure"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of a batch once it has run.

    Attributes:
        logits: The model's output for each pair.
        blends: What the detector measured of each pair.
        labels: Class of each unit's image, -1 where a score is not finite or no detector reads it.
        distances: Layer distance of each unit's image; None where that is not in the batch, or not looked at.
    """

    logits: Logits
    blends: np.ndarray
    labels: Sequence[int]
    distances: Sequence[float | None]


def measure(
    detector: Detector,
    batch: Batch,
    logits: Logits,
    entropies: EntropyBits,
    features: Features | None = None,
) -> Measured:
    """Return what the results of a batch come to; an image that ran before has the label it got then.

    Args:
        detector: Measures.
        batch: What was run.
        logits: The model's output for each pair.
        entropies: Entropy of that, bits.
        features: The layers of each pair, where the detector looks at them.
    """
    new = np.flatnonzero([unit.with_image for unit in batch.units])
    labels = np.array([unit.row.label for unit in batch.units], np.int64)
    if detector.by_class and len(new):
        labels[new] = predicted_classes(logits[batch.firsts[new]])
    return Measured(
        logits,
        detector.measure(labels[batch.image_index], batch.overlay_index, logits, entropies),
        labels.tolist(),
        _distances(detector, batch, new, labels, features),
    )


def _distances(
    detector: Detector,
    batch: Batch,
    new: Int64[np.ndarray, " v"],
    labels: Int64[np.ndarray, " u"],
    features: Features | None,
) -> Sequence[float | None]:
    distances: list[float | None] = [None] * len(batch.units)
    if detector.layers is not None and features is not None and len(new):
        scores = detector.layers.scores(labels[new], features[batch.firsts[new]])
        for place, score in zip(new.tolist(), scores.tolist(), strict=True):
            distances[place] = score
    return distances
