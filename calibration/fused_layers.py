"""Layer distances as one of the fused detector's statistics: fitted and tried on the pool, or why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, Num

from calibration.capabilities.find_layers import find_layers
from calibration.capabilities.layer_distances import NO_LAYERS, blind_layers
from calibration.capabilities.trial import LEAST_IMAGES, unfit_scores
from calibration.subject import Subject
from guard.arrays import Images
from guard.detection.capabilities.layer_distances import (
    Layer,
    LayerDistances,
    fit_layer_distances,
    held_out_scores,
)
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["InnerLook", "features_of", "layers_of", "look_inside"]


@dataclass(frozen=True, eq=False)
class InnerLook:
    """What came of it.

    Attributes:
        layers: Where distances are taken; none where they are off.
        distances: What clean inputs look like there; None where that is off.
        held_out: Distance of each fitted input, by what was fitted on others; None where that is off.
        why_not: Why it is off; empty where it is on, or was not asked for.
    """

    layers: tuple[Layer, ...] = ()
    distances: LayerDistances | None = None
    held_out: Float64[np.ndarray, " n"] | None = None
    why_not: str = ""


def layers_of(subject: Subject, asked: bool) -> tuple[Layer, ...]:
    """Return the layers to look at; none where nobody asked, or the model's graph has none."""
    if not asked:
        return ()
    return find_layers(subject.source.model, subject.prepare.source, subject.sink.name)


def look_inside(
    layers: tuple[Layer, ...],
    predicted: Int64[np.ndarray, " n"],
    features: Float32[np.ndarray, "n d"] | None,
    classes: int,
    frr: float,
) -> InnerLook:
    """Fit layer distances and try them, without labels or triggers.

    What the trial shows is told where it is made: :func:`blind_layers` and :func:`unfit_scores`.

    Args:
        layers: As found in the model's graph.
        predicted: Class that the model gives to each clean input, none of which calibrates.
        features: Of each, the layers' in a row; None where there are no layers.
        classes: Classes of the model.
        frr: The lowest false-rejection rate that is asked for.
    """
    if not layers or features is None:
        return InnerLook(why_not=NO_LAYERS)
    if len(predicted) < LEAST_IMAGES:
        return InnerLook(why_not=f"it takes {LEAST_IMAGES} clean images, and there are {len(predicted)}")
    if not np.isfinite(features).all():
        return InnerLook(why_not="activations of clean images are NaN or infinite")
    widths = tuple(layer.width for layer in layers)
    blind = blind_layers(predicted, features, widths, classes)
    if blind:
        return InnerLook(why_not=blind)
    held_out = held_out_scores(predicted, features, widths, classes)
    unfit = unfit_scores(held_out, frr)
    if unfit:
        return InnerLook(why_not=unfit)
    return InnerLook(layers, fit_layer_distances(predicted, features, widths, classes), held_out)


def features_of(
    classifier: OnnxClassifier,
    images: Num[np.ndarray, "n h w c"],
    prepare: Callable[[np.ndarray], Images],
    batch: int,
) -> Float32[np.ndarray, "n d"]:
    """Return the layers of each image in a row.

    Args:
        classifier: Opened with the layers.
        images: Images as stored.
        prepare: Turns stored images into model inputs.
        batch: Images in one call.
    """
    parts = []
    for start in range(0, len(images), batch):
        rows = prepare(images[start : start + batch])
        each = np.arange(len(rows), dtype=np.int64)
        parts.append(classifier.check_layers(rows, each, np.full_like(each, -1))[2])
    return np.concatenate(parts)
