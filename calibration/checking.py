"""Decide of many images by the check that serves, round by round, many images at a time.

What the scheduler does for requests as they come is done here for images that are all there. The detector is
the same, the order of its rounds is, and what is known of one image depends on no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Num

from calibration.progress import Progress
from guard.arrays import Images
from guard.detection.base import Decision, Detector, Evidence, predicted_classes
from guard.runtime.checked_classifier import CheckedClassifier, run_pairs

__all__ = ["Checked", "check_images"]


@dataclass(frozen=True, eq=False)
class Checked:
    """What the check made of images, one of each for an image.

    Attributes:
        predicted: Class that the model gives to it; -1 where a score is not finite.
        decisions: What was decided.
        passes: Blends that it took.
        scores: Of the detector, over those.
    """

    predicted: Int64[np.ndarray, " n"]
    decisions: tuple[Decision, ...]
    passes: Int64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]


def check_images(
    classifier: CheckedClassifier,
    detector: Detector,
    images: Num[np.ndarray, "n h w c"],
    prepare: Callable[[np.ndarray], Images],
    batch: int,
    progress: Progress,
) -> Checked:
    """Return what the check makes of each image.

    Args:
        classifier: The model with the detector's overlays.
        detector: Decides.
        images: Images as stored.
        prepare: Turns stored images into model inputs.
        batch: Most model inputs in one call.
        progress: Told of images that were decided.
    """
    predicted: list[np.ndarray] = []
    decisions: list[Decision] = []
    evidence: list[Evidence] = []
    for start in range(0, len(images), batch):
        rows = prepare(images[start : start + batch])
        classes, known = _themselves(classifier, detector, rows)
        decisions += _decided(classifier, detector, rows, classes, known, batch)
        predicted.append(classes)
        evidence += known
        progress.step(len(rows))
    return Checked(
        predicted=np.concatenate(predicted) if predicted else np.zeros(0, np.int64),
        decisions=tuple(decisions),
        passes=np.array([known.passes for known in evidence], np.int64),
        scores=np.array([detector.score(known) for known in evidence], np.float64),
    )


def _themselves(
    classifier: CheckedClassifier, detector: Detector, rows: Images
) -> tuple[Int64[np.ndarray, " n"], list[Evidence]]:
    """Return the class of each row, and what is known of it before any blend."""
    places, alone = np.arange(len(rows), dtype=np.int64), np.full(len(rows), -1, np.int64)
    logits, _, features = run_pairs(classifier, rows, places, alone, with_layers=detector.layers is not None)
    predicted = predicted_classes(logits)
    if detector.layers is None or features is None:
        return predicted, [Evidence()] * len(rows)
    distances = detector.layers.scores(predicted, features)
    return predicted, [Evidence(distance=distance) for distance in distances.tolist()]


def _decided(
    classifier: CheckedClassifier,
    detector: Detector,
    rows: Images,
    predicted: Int64[np.ndarray, " n"],
    evidence: list[Evidence],
    batch: int,
) -> list[Decision]:
    """Return the decision of each row; ``evidence`` is what it was made by then."""
    decided: dict[int, Decision] = {}
    waiting = np.arange(len(rows), dtype=np.int64)
    while len(waiting):
        overlays = detector.plan.next_round(evidence[waiting[0]].passes)  # all have had as many
        measured = _measured(classifier, detector, rows[waiting], predicted[waiting], overlays, batch)
        for row, news in zip(waiting.tolist(), measured, strict=True):
            evidence[row] = detector.update(evidence[row], news)
            decision = detector.decide(evidence[row])
            if decision is not None:
                decided[row] = decision
        waiting = np.array([row for row in waiting.tolist() if row not in decided], np.int64)
    return [decided[row] for row in range(len(rows))]


def _measured(
    classifier: CheckedClassifier,
    detector: Detector,
    rows: Images,
    predicted: Int64[np.ndarray, " n"],
    overlays: range,
    batch: int,
) -> np.ndarray:
    """Return what is measured of each row in a round, rows first, overlays second."""
    pairs, parts = len(rows) * len(overlays), []
    for start in range(0, pairs, batch):
        row, place = np.divmod(np.arange(start, min(start + batch, pairs), dtype=np.int64), len(overlays))
        overlay = place + overlays.start
        logits, entropies = classifier.check(rows[row[0] : row[-1] + 1], row - row[0], overlay)
        parts.append(detector.measure(predicted[row], overlay, logits, entropies))
    together = np.concatenate(parts)
    return together.reshape(len(rows), len(overlays), *together.shape[1:])
