"""The guard's own detector on more clean images than all scores are measured on: it stops early at most."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int64

from benchmarks.detection.answers import Answers, Asking
from benchmarks.detection.network import Network, blends
from guard.detection.base import Decision, Evidence
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.fused import Fused

__all__ = ["decisions"]

_AT_ONCE = 200


def decisions(asking: Asking, answers: Answers, detector: Fused) -> list[Decision]:
    """Return what the detector makes of each further fresh image, round by round as when it serves."""
    name = f"{asking.victim.network}-more-{_fingerprint(answers, detector)}"
    kept = asking.kept(name, lambda: {"decisions": _decide(asking, answers, detector)})
    return [Decision(str(value)) for value in kept["decisions"]]


def _decide(asking: Asking, answers: Answers, detector: Fused) -> np.ndarray:
    network = Network(asking.victim.model)
    images, overlays = asking.pool.images, asking.pool.images[answers.overlays]
    rows, found = asking.parts.more, list[Decision]()
    for start in range(0, len(rows), _AT_ONCE):
        found += _of_some(network, detector, images[rows[start : start + _AT_ONCE]], overlays, asking.rule)
    return np.array([decision.value for decision in found])


def _fingerprint(answers: Answers, detector: Fused) -> str:
    """Return what tells detectors apart by which further images were decided."""
    numbers = [detector.boundary, detector.block_boundary, *detector.plan.rounds, *answers.overlays]
    numbers += [number for early in detector.early for number in (early.passes, early.below)]
    for fusion in (detector.fusion, *(early.fusion for early in detector.early)):
        numbers += [*fusion.centres, *fusion.scales]
        numbers += [
            number for view in fusion.views for number in (*view.weights.flat, view.centre, view.scale)
        ]
    return hashlib.sha256(repr([float(one or 0) for one in numbers]).encode()).hexdigest()[:16]


def _of_some(
    network: Network, detector: Fused, images: np.ndarray, overlays: np.ndarray, rule: str
) -> list[Decision]:
    predicted = network.probabilities(images).argmax(axis=1)
    evidence = [Evidence() for _ in images]
    found: list[Decision | None] = [None] * len(images)
    while open_still := [row for row, decision in enumerate(found) if decision is None]:
        tried = detector.plan.next_round(evidence[open_still[0]].passes)
        asked = blends(images[open_still], overlays[tried.start : tried.stop], rule)
        measured = _measured(detector, predicted[open_still], tried, network.probabilities(asked))
        for row, own in zip(open_still, measured, strict=True):
            evidence[row] = detector.update(evidence[row], own)
            found[row] = detector.decide(evidence[row])
    return [decision for decision in found if decision is not None]


def _measured(
    detector: Fused, predicted: Int64[np.ndarray, " n"], tried: range, probabilities: np.ndarray
) -> np.ndarray:
    each = np.tile(np.arange(tried.start, tried.stop), len(predicted))
    entropies = entropy_of_probabilities(probabilities)
    found = detector.measure(np.repeat(predicted, len(tried)), each, probabilities, entropies)
    measured: np.ndarray = found.reshape(len(predicted), len(tried), -1)
    return measured
