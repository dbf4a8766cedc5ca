"""Layer distances for one model: see :mod:`guard.detection.capabilities.layer_distances`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from calibration.capabilities.base import Bench, Fitted, Off, batches
from calibration.capabilities.find_layers import find_layers
from guard.arrays import Images, Logits
from guard.detection.base import predicted_classes
from guard.detection.capabilities.layer_distances import Layer, LayerDistances, fit_layer_distances
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["NO_LAYERS", "FittedLayers", "blind_layers", "fit_layers"]

NO_LAYERS: Final = "the model's graph has no activation of a convolution, and no linear layer after others"

LEAST_CONTRAST: Final = 0.8
"""How well the distance must tell inputs that are given another class than the model gives them (AUROC)."""

LEAST_IMAGES: Final = 50


@dataclass(frozen=True, eq=False)
class FittedLayers:
    """Layer distances of one model.

    Attributes:
        layers: Where it looks.
        distances: What clean inputs look like there.
    """

    bench: Bench
    layers: tuple[Layer, ...]
    distances: LayerDistances

    @property
    def passes(self) -> int:
        """None: the activations are those of the pass that gives the prediction."""
        return 0

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        """Return one score for each input."""
        with self.bench.open(layers=self.layers) as classifier:
            predicted, features = _asked(classifier, images)
        return self.distances.scores(predicted, features)


def fit_layers(bench: Bench) -> Fitted | Off:
    """Return layer distances for the bench's model, or why it does not allow them."""
    layers = find_layers(bench.model, bench.source, bench.sink.name)
    if not layers:
        return Off(NO_LAYERS)
    if len(bench.images) < LEAST_IMAGES:
        return Off(f"it takes {LEAST_IMAGES} clean images to fit it on, and there are {len(bench.images)}")
    with bench.open(layers=layers) as classifier:
        predicted, features = _asked(classifier, bench.images)
    if (predicted < 0).any() or not np.isfinite(features).all():
        return Off("activations of clean images are NaN or infinite, so that no distance can be taken")
    widths = tuple(layer.width for layer in layers)
    blind = blind_layers(predicted, features, widths, bench.sink.classes)
    if blind:
        return Off(blind)
    return FittedLayers(bench, layers, fit_layer_distances(predicted, features, widths, bench.sink.classes))


def blind_layers(
    predicted: Int64[np.ndarray, " n"],
    features: Float32[np.ndarray, "n d"],
    widths: tuple[int, ...],
    classes: int,
) -> str:
    """Return why the layers cannot tell anything; nothing where they can.

    Half the inputs are fitted on, and of the other half the distance must be larger when they are said to be
    of another class than the model gives them. Where it is not, what goes on inside the model has nothing to
    do with its classes, and a trigger would not show either. That it is says nothing of any one trigger.

    Args:
        predicted: Class that the model gives to each clean input.
        features: Of each, the layers' in a row.
        widths: Numbers that each layer has.
        classes: Classes of the model.
    """
    given = np.unique(predicted)
    if len(given) < 2:
        return "the model gives all clean images one class, so that its layers cannot be compared by class"
    half = np.arange(len(predicted)) % 2 == 0
    fitted = fit_layer_distances(predicted[half], features[half], widths, classes)
    own, rest = predicted[~half], features[~half]
    another = given[(np.searchsorted(given, own) + 1) % len(given)]
    contrast = _auroc(fitted.scores(own, rest), fitted.scores(another, rest))
    if contrast >= LEAST_CONTRAST:
        return ""
    return (
        f"the layers hardly tell the model's own classes apart (AUROC {contrast:.2f} for inputs said to be "
        f"of another class, expected at least {LEAST_CONTRAST}), so that a trigger would not show there"
    )


def _asked(
    classifier: OnnxClassifier, images: Images
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n d"]]:
    """Return the class of each image, and its layers in a row."""
    logits: list[Logits] = []
    features = []
    for some in batches(images):
        each = np.arange(len(some), dtype=np.int64)
        found = classifier.check_layers(some, each, np.full_like(each, -1))
        logits.append(found[0])
        features.append(found[2])
    return predicted_classes(np.concatenate(logits)), np.concatenate(features)


def _auroc(low: Float64[np.ndarray, " n"], high: Float64[np.ndarray, " n"]) -> float:
    """Return the share of pairs in which the second is higher, ties counting half."""
    below = np.searchsorted(np.sort(low), high, side="left")
    upto = np.searchsorted(np.sort(low), high, side="right")
    return float((below + upto).mean() / (2 * len(low)))
