"""A fused detector fitted to a small model on random images, and the artifact that holds it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from calibration.fused_views import fit_views
from guard.artifact import FusedRecord, Profile, ScoreBoundary, write_artifact
from guard.artifact.fused_record import LayerRecord, fused_detector, plain_fusion
from guard.detection.base import predicted_classes
from guard.detection.capabilities.layer_distances import Layer, LayerDistances, fit_layer_distances
from guard.detection.entropy import softmax
from guard.detection.fused import Fused
from guard.detection.fusion import fit_fusion
from guard.detection.measurements import Measures, Statistic
from guard.detection.responses import fit_responses
from guard.detection.stratified import fit_strata
from tests.artifacts import make_profile, random_images
from tests.guard.check_reference import open_classifier, overlays_of

__all__ = ["DEFAULT", "detector_of", "fitted", "write_fused_artifact"]

DEFAULT: tuple[Statistic, ...] = ("departure", "surprise", "stratified")
N_CLEAN = 40


def fitted(
    model: onnx.ModelProto,
    statistics: tuple[Statistic, ...] = DEFAULT,
    *,
    strata: bool = True,
    layers: tuple[Layer, ...] = (),
    boundaries: tuple[float, float] | None = None,
    views: bool = True,
    **profile_options: object,
) -> tuple[Profile, Measures]:
    """Return a profile with the fused detector and its tables.

    Args:
        model: It is fitted to this one's answers to random images.
        statistics: Which are fused.
        strata: Whether the overlays' classes are looked at.
        layers: Where layer distances are taken, if those are a statistic.
        boundaries: On scores, for flags and for refusals; one that half of the images are above if None.
        views: Whether there are views, or each statistic is one by itself, as in older artifacts.
    """
    profile = make_profile(model, **profile_options)  # type: ignore[arg-type]
    predicted, answers, entropies, of_overlays = _answers(model, profile)
    looked = _looked_inside(model, profile, predicted, layers)
    kept = np.take_along_axis(answers, predicted[:, None, None], axis=2)[:, :, 0]
    of_strata = fit_strata(predicted, kept, of_overlays, answers.shape[2]) if strata else None
    distances, scored = looked or (None, None)
    measures = Measures(fit_responses(predicted, answers), of_strata, distances)
    values = measures.statistics(statistics, measures.of_inputs(predicted, answers, entropies), scored)
    fusion = fit_views(statistics, values) if views else fit_fusion(values)
    scores = np.sort(fusion.scores(values))
    first, second = boundaries or (float(np.median(scores)), None)
    record = FusedRecord(
        statistics=statistics,
        **plain_fusion(fusion),
        early=(),
        boundary=_boundary(first, len(scores)),
        block=None if second is None else _boundary(second, len(scores)),
        clean_scores=tuple(scores.tolist()),
        n_fitted=len(scores),
        layers=tuple(LayerRecord(**asdict(layer)) for layer in layers),
    )
    check = profile.check.model_copy(update={"detector": "fused"})
    return profile.model_copy(update={"check": check, "fused": record}), measures


def detector_of(profile: Profile, measures: Measures) -> Fused:
    """Return the detector that serves."""
    assert profile.fused is not None
    logits = profile.output.kind == "logits"
    return fused_detector(profile.fused, measures, profile.check.rounds, takes_logits=logits)


def write_fused_artifact(
    repository: Path, model: onnx.ModelProto, name: str = "fused", **options: object
) -> Path:
    """Write ``<repository>/<name>/<next version>`` and return it."""
    profile, measures = fitted(model, **options)  # type: ignore[arg-type]
    return write_artifact(
        repository / name,
        model=model.SerializeToString(),
        overlays=overlays_of(profile),
        profile=profile,
        measures=measures,
    )


def _answers(
    model: onnx.ModelProto, profile: Profile
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the images' classes, all their blends' answers, the entropies, the overlays' classes."""
    images, count = random_images(profile, N_CLEAN, seed=3), profile.check.n_overlays
    with open_classifier(model, profile) as classifier:
        predicted = predicted_classes(classifier.logits(images))
        image, overlay = np.divmod(np.arange(len(images) * count, dtype=np.int64), count)
        logits, entropies = classifier.check(images, image, overlay)
        of_overlays = predicted_classes(classifier.logits(overlays_of(profile)))
    answers = softmax(logits) if profile.output.kind == "logits" else logits
    return predicted, answers.reshape(len(images), count, -1), entropies.reshape(-1, count), of_overlays


def _looked_inside(
    model: onnx.ModelProto, profile: Profile, predicted: np.ndarray, layers: tuple[Layer, ...]
) -> tuple[LayerDistances, np.ndarray] | None:
    """Return what the images look like inside, and how far each is from that."""
    if not layers:
        return None
    images = random_images(profile, N_CLEAN, seed=3)
    each = np.arange(len(images), dtype=np.int64)
    with open_classifier(model, profile, layers=layers) as classifier:
        features = classifier.check_layers(images, each, np.full_like(each, -1))[2]
    widths = tuple(layer.width for layer in layers)
    distances = fit_layer_distances(predicted, features, widths, profile.output.classes)
    return distances, distances.scores(predicted, features)


def _boundary(boundary: float, n_scores: int) -> ScoreBoundary:
    rates = {"frr": 0.05, "confidence": 0.95, "certified_frr": 0.05, "expected_frr": 0.02}
    return ScoreBoundary(boundary=boundary, rank=1, n_scores=n_scores, **rates)
