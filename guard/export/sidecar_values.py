"""What the sidecar makes of images over all N blends, by the classifier and the detector that serve."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from guard.arrays import Images
from guard.detection.base import Detector, Evidence, predicted_classes
from guard.runtime.probing import Answers

__all__ = ["sidecar_evidence", "sidecar_values"]

_MAX_PAIRS = 64


def sidecar_values(classifier: Answers, detector: Detector, images: Images) -> Float64[np.ndarray, " n"]:
    """Return minus the score of each image over all N blends; STRIP's is the mean entropy, bits."""
    evidence = sidecar_evidence(classifier, detector, images)
    return np.array([-detector.score(one) for one in evidence])


def sidecar_evidence(classifier: Answers, detector: Detector, images: Images) -> list[Evidence]:
    """Return what is known of each image after all N blends.

    Args:
        classifier: With its overlays in the plan's order.
        detector: The model's.
        images: In its input space, layout and dtype.
    """
    each = np.arange(len(images), dtype=np.int64)
    alone = [classifier.check(images, part, np.full(len(part), -1, np.int64))[0] for part in _parts(each)]
    predicted = predicted_classes(np.concatenate(alone))
    count = detector.plan.n_overlays
    measured = []
    for pairs in _parts(np.arange(len(images) * count, dtype=np.int64)):
        image, overlay = np.divmod(pairs, count)
        logits, entropies = classifier.check(images, image, overlay)
        measured.append(detector.measure(predicted[image], overlay, logits, entropies))
    blends = np.concatenate(measured)
    rows = blends.reshape(len(images), count, *blends.shape[1:])
    return [detector.update(Evidence(), row) for row in rows]


def _parts(pairs: np.ndarray) -> list[np.ndarray]:
    return np.split(pairs, range(_MAX_PAIRS, len(pairs), _MAX_PAIRS))
