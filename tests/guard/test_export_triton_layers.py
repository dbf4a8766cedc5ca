"""The layer distance within the exported graph: of the images themselves, as the sidecar scores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from guard.detection.capabilities.layer_distances import Layer
from guard.detection.measurements import Statistic
from guard.export.triton import TritonOptions, export_triton
from guard.runtime.score_shift import full_scores
from tests.artifacts import random_images
from tests.guard.check_reference import open_classifier
from tests.guard.fused_subjects import detector_of, fitted, write_fused_artifact
from tests.guard.guarded_model import Guarded, guarded
from tests.tiny_models import conv_classifier, linear_classifier

FLAT = (Layer("flat", 126, over_space=False),)
CONV = (Layer("positive", 16, over_space=True), Layer("logits", 10, over_space=False))


def models(kind: str) -> tuple[onnx.ModelProto, tuple[Layer, ...], bool]:
    """Return a model, its layers, and whether its overlays are of several classes."""
    if kind == "conv":
        return conv_classifier(), CONV, False
    return (
        linear_classifier((3, 6, 7), datatype=kind, gain=0.3, opset=9 if kind == "FP32" else 17),
        FLAT,
        True,
    )


@pytest.mark.parametrize(
    ("kind", "statistics"),
    [
        ("FP32", ("layers",)),
        ("FP32", ("layers", "departure", "stratified", "strip")),
        ("FP16", ("surprise", "layers")),
        ("UINT8", ("stratified", "layers")),
        ("conv", ("layers", "surprise", "departure")),
    ],
)
@pytest.mark.parametrize("per_pass", [1, 4])
def test_scores_are_the_sidecars(kind: str, statistics: tuple[Statistic, ...], per_pass: int) -> None:
    model, layers, strata = models(kind)
    profile, measures = fitted(model, statistics, strata=strata, layers=layers)
    images = random_images(profile, 6)
    with open_classifier(model, profile, layers=layers) as classifier:
        scores = full_scores(classifier, detector_of(profile, measures), images, max_pairs=7)

    graph = guarded(model, profile, overlays_per_pass=per_pass, measures=measures)

    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_allclose(Guarded(graph)(images).scores, scores, rtol=1e-4, atol=1e-4)
    assert np.ptp(scores) > 0.1


def test_an_artifact_whose_score_looks_at_layers_is_exported(tmp_path: Path) -> None:
    model, layers, _ = models("FP32")
    statistics: tuple[Statistic, ...] = ("departure", "surprise", "stratified", "layers")
    artifact = write_fused_artifact(tmp_path / "models", model, statistics=statistics, layers=layers)

    exported = export_triton(TritonOptions(artifact, tmp_path / "triton"))

    assert exported.parity.score_difference <= 1e-4
    assert (exported.detector, exported.parity.closed) == ("fused", 5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_is_not_accepted(value: float) -> None:
    """The model's answer does not depend on the activation, so nothing else tells."""
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile, measures = fitted(model, ("departure", "layers"), layers=FLAT, boundaries=(1e6, 1e6))
    images = random_images(profile, 2)
    assert Guarded(guarded(model, profile, measures=measures))(images).verdicts == ["accept"] * 2
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), "bad"))
    model.graph.node.append(onnx.helper.make_node("Add", ["flat", "bad"], ["spoiled"]))
    record = profile.fused
    assert record is not None
    layers = tuple(layer.model_copy(update={"name": "spoiled"}) for layer in record.layers)
    profile = profile.model_copy(update={"fused": record.model_copy(update={"layers": layers})})

    answer = Guarded(guarded(model, profile, measures=measures))(images)

    assert answer.verdicts == ["unchecked"] * 2
    assert np.isnan(answer.scores).all()
