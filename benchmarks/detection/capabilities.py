"""The guard's detector with what it sees inside the model; the activations come with the same passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32

from benchmarks.detection.answers import Answers, Asking, triggered_images
from benchmarks.detection.figures import RATES, of_detector, row_of
from benchmarks.detection.network import Network
from benchmarks.detection.scores import detector_of, measured_of
from calibration.capabilities.find_layers import find_layers
from calibration.fused_fit import fit_fused, fused_rounds
from calibration.fused_layers import features_of, look_inside
from guard.arrays import Images
from guard.artifact import InputSpec, OutputSpec
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.superimpose import BLEND_RULES
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["FUSED_NAME", "layer_rows", "signature_of"]

FUSED_NAME = "fused + capabilities"
_EARLY_NAME = "fused + capabilities, accepting early"
_BATCH = 128


def layer_rows(asking: Asking, answers: Answers) -> Mapping[str, dict[str, Any]]:
    """Return the figures of layer distances, alone and fused; none where the model does not allow them.

    Args:
        asking: A subject.
        answers: What it says, overlays in order.
    """
    model = onnx.load(str(asking.victim.model))
    source, sink = signature_of(model, asking.pool.images[0].shape, answers.alone.shape[1])
    layers = find_layers(model, source, sink.name)
    found = asking.kept(
        f"{asking.victim.name}-layers", lambda: {"features": _ask(asking, model, source, sink, layers)}
    )
    features, fit, classes = found["features"], answers.part(0), answers.alone.shape[1]
    predicted = answers.predicted
    look = look_inside(layers, predicted[fit], features[fit], classes, RATES[0])
    if look.distances is None:
        return {}
    entropies, rounds = entropy_of_probabilities(answers.under), fused_rounds(answers.under.shape[1])
    fitted = fit_fused(
        predicted[fit],
        answers.under[fit],
        entropies[fit],
        answers.overlay_classes,
        rounds,
        layers=look.distances,
        distances=look.held_out,
    )
    distances = look.distances.scores(predicted, features)
    measured = measured_of(fitted, answers, entropies)
    scores = fitted.scores(measured, distances)
    blends = float(answers.under.shape[1])
    rows = {
        "layers": row_of(answers, distances) | {"passes clean": 0.0, "passes triggered": 0.0},
        FUSED_NAME: row_of(answers, scores) | {"passes clean": blends, "passes triggered": blends},
    }
    detector = replace(detector_of(fitted, rounds), boundary=np.inf)
    rows[_EARLY_NAME] = of_detector(answers, detector, measured, scores, distances=distances)
    return rows


def _ask(
    asking: Asking, model: onnx.ModelProto, source: InputSpec, sink: OutputSpec, layers: tuple[Layer, ...]
) -> Float32[np.ndarray, "n d"]:
    """Return the layers of the answers' inputs, in their order."""
    parts, images = asking.parts, asking.pool.images
    clean = images[np.concatenate([parts.fit, parts.calibration, parts.fresh])]
    triggered = triggered_images(asking, Network(asking.victim.model))
    with OnnxClassifier.open(
        model,
        source=source,
        sink=sink,
        fixed_batch=None,
        overlays=images[:1],
        blend=BLEND_RULES[asking.rule],
        device="cpu",
        threads=1,
        layers=layers,
    ) as classifier:
        both = [
            features_of(classifier, some, _as_they_are, _BATCH) for some in (clean, triggered) if len(some)
        ]
    return np.concatenate(both)


def _as_they_are(images: np.ndarray) -> Images:
    return images


def signature_of(
    model: onnx.ModelProto, shape: tuple[int, ...], classes: int
) -> tuple[InputSpec, OutputSpec]:
    """Return how a subject of the zoo takes images, and how it answers."""
    source = InputSpec(
        name=model.graph.input[0].name,
        datatype="FP32",
        shape=(shape[0], shape[1], shape[2]),
        layout="NCHW",
        low=(0.0,),
        high=(1.0,),
    )
    sink = OutputSpec(name=model.graph.output[0].name, datatype="FP32", classes=classes, kind="logits")
    return source, sink
