"""Score clean images by the check that will serve, and fit the detector that decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from calibration.fused_fit import DEFAULT_STATISTICS, FusedFit, fit_fused, fused_rounds, most_telling_first
from calibration.fused_layers import InnerLook, features_of, layers_of, look_inside
from calibration.options import CalibrateOptions
from calibration.progress import Progress
from calibration.scoring import answer_blends, answer_images, most_uncertain_first, score_images
from calibration.split import Split
from calibration.subject import Subject
from guard.arrays import Overlays
from guard.artifact import Probe
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.entropy import softmax
from guard.detection.measurements import Statistic
from guard.detection.plan import default_rounds
from guard.detection.strip import mean_entropies
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["Scored", "score"]

_PROBE_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Scored:
    """What the calibration images came to.

    Attributes:
        overlays: In the plan's order.
        rounds: Overlays in each round.
        entropies: Of all calibration images under all overlays, in that order, bits.
        probe: What is asked again on loading.
        probed: Which of the calibration images are in it.
        device: Where the model ran.
        fit: The fused detector, fitted on other images; None for STRIP.
        measured: What it measures of all calibration images; None for STRIP.
        look: Whether it looks inside the model, and where; None for STRIP.
        distances: Layer distance of all calibration images; None where nobody looks.
    """

    overlays: Overlays
    rounds: tuple[int, ...]
    entropies: Float32[np.ndarray, "n m"]
    probe: Probe
    probed: Int64[np.ndarray, " w"]
    device: str
    fit: FusedFit | None = None
    measured: Float64[np.ndarray, "n m 4"] | None = None
    look: InnerLook | None = None
    distances: Float64[np.ndarray, " n"] | None = None


def score(
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    options: CalibrateOptions,
    statistics: tuple[Statistic, ...] = DEFAULT_STATISTICS,
) -> Scored:
    """Score the calibration images; where the split has images to fit on, fit the fused detector first.

    Args:
        subject: Model and images.
        split: Which images serve what.
        predicted: Class that the model gives to each image.
        options: Of the calibration.
        statistics: Which the fused detector is to fuse.

    Raises:
        UnfitModelError: If what the model answers to blends cannot be measured.
    """
    overlays = subject.prepare(subject.images.images[split.overlays])
    blends = (len(split.fit) + len(split.calibration)) * len(overlays)
    with Progress(blends, "blends", options.quiet) as progress:
        if len(split.fit):
            return _score_fused(subject, split, predicted, options, overlays, statistics, progress)
        return _score_strip(subject, split, options, overlays, progress)


def _score_strip(
    subject: Subject, split: Split, options: CalibrateOptions, overlays: Overlays, progress: Progress
) -> Scored:
    images = subject.images.images[split.calibration]
    with subject.open(overlays, options) as classifier:
        entropies = score_images(classifier, images, subject.prepare, len(overlays), subject.batch, progress)
        order = most_uncertain_first(entropies)
        entropies = entropies[:, order]
        probed = _spread(len(images), _PROBE_IMAGES)
        probe = _probe(classifier, subject, images, entropies, probed)
        rounds = options.rounds or default_rounds(options.overlays)
        return Scored(overlays[order], rounds, entropies, probe, probed, classifier.device)


def _score_fused(
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    options: CalibrateOptions,
    overlays: Overlays,
    statistics: tuple[Statistic, ...],
    progress: Progress,
) -> Scored:
    rounds = options.rounds or fused_rounds(options.overlays)
    layers = layers_of(subject, options.layers == "auto")
    with subject.open(overlays, options, layers) as classifier:
        images = subject.images.images
        outputs, bits = answer_images(
            classifier, images[split.fit], subject.prepare, len(overlays), subject.batch, progress
        )
        probabilities = _probabilities(subject, outputs)
        classes = predicted[split.overlays]
        order = most_telling_first(predicted[split.fit], probabilities, classes)
        look = _look(classifier, subject, split, predicted, layers, options)
        fit = fit_fused(
            predicted[split.fit],
            probabilities[:, order],
            bits[:, order],
            classes[order],
            rounds,
            statistics,
            layers=look.distances,
            distances=look.held_out,
        )
        measured = _measure(classifier, subject, split, predicted, fit, order, progress)
        entropies = measured[:, :, 0].astype(np.float32)
        probed = _spread(len(entropies), _PROBE_IMAGES)
        probe = _probe(classifier, subject, images[split.calibration], entropies, probed)
        distances = _distances(classifier, subject, split, predicted, look)
        where = classifier.device
        return Scored(
            overlays[order], rounds, entropies, probe, probed, where, fit, measured, look, distances
        )


def _look(
    classifier: OnnxClassifier,
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    layers: tuple[Layer, ...],
    options: CalibrateOptions,
) -> InnerLook:
    """Return layer distances, fitted on the pool, or why they are off."""
    if options.layers != "auto":
        return InnerLook()
    features = None
    if layers:
        images = subject.images.images[split.fit]
        features = features_of(classifier, images, subject.prepare, subject.batch)
    return look_inside(layers, predicted[split.fit], features, subject.sink.classes, options.lowest_frr)


def _distances(
    classifier: OnnxClassifier,
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    look: InnerLook,
) -> Float64[np.ndarray, " c"] | None:
    """Return the layer distance of each calibration image; None where nobody looks."""
    if look.distances is None:
        return None
    rows = split.calibration
    features = features_of(classifier, subject.images.images[rows], subject.prepare, subject.batch)
    return look.distances.scores(predicted[rows], features)


def _probabilities(
    subject: Subject, outputs: Float32[np.ndarray, "*batch k"]
) -> Float32[np.ndarray, "*batch k"]:
    """Return what the model answers to blends, as probabilities."""
    if subject.sink.kind == "logits":
        return softmax(outputs)
    if outputs.min() < 0:
        raise UnfitModelError(
            f"{subject.source.path} answers images with probabilities and blends with numbers down to "
            f"{outputs.min():.3g}; try --blend convex, which stays within the images' range, or export logits"
        )
    return outputs


def _measure(
    classifier: OnnxClassifier,
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    fit: FusedFit,
    order: Int64[np.ndarray, " m"],
    progress: Progress,
) -> Float64[np.ndarray, "c m 4"]:
    """Return what is measured of the calibration images, overlays in the plan's order."""
    rows, place_of = split.calibration, np.argsort(order)
    measured = np.empty((len(rows), len(order), 4))
    blends = answer_blends(
        classifier, subject.images.images[rows], subject.prepare, len(order), subject.batch, progress
    )
    for (image, overlay), (logits, bits) in blends:
        probabilities = _probabilities(subject, logits)
        place = place_of[overlay]
        measured[image, place] = fit.measures.of_blends(predicted[rows[image]], place, probabilities, bits)
    return measured


def _probe(
    classifier: OnnxClassifier,
    subject: Subject,
    images: np.ndarray,
    entropies: Float32[np.ndarray, "n m"],
    chosen: Int64[np.ndarray, " w"],
) -> Probe:
    probed = subject.prepare(images[chosen])
    return Probe(probed, classifier.logits(probed), mean_entropies(entropies[chosen]))


def _spread(count: int, wanted: int) -> Int64[np.ndarray, " w"]:
    """Return up to ``wanted`` indices spread over ``count``, for images often come class by class."""
    return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))
