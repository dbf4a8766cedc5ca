"""What the output is, and what looks wrong about it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.data import ImageSet
from calibration.errors import DataError
from calibration.model_source import ModelSource
from calibration.outputs import accuracy_of, check_labels, count_classes, kind_of, warnings_of
from guard.artifact.signature import read_signature
from guard.detection.entropy import softmax
from guard.errors import UnfitModelError
from tests.tiny_models import linear_classifier, untold_classes


def source_of(model: onnx.ModelProto, tmp: str = "m.onnx") -> ModelSource:
    return ModelSource(Path(tmp), model, model.SerializeToString(), "0" * 64)


@given(st.integers(2, 50), st.integers(0, 99), st.floats(0.1, 40), st.booleans())
def test_probabilities_are_told_from_logits(classes: int, seed: int, gain: float, half: bool) -> None:
    logits = np.random.default_rng(seed).normal(0, gain, (20, classes)).astype(np.float32)
    probabilities = softmax(logits)
    if half:
        probabilities = probabilities.astype(np.float16).astype(np.float32)
    assert kind_of(probabilities, "m") == "probabilities"
    assert kind_of(logits, "m") == "logits"
    assert kind_of(np.log(np.maximum(softmax(logits), 1e-30)), "m") == "logits"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    outputs = np.zeros((5, 3), np.float32)
    outputs[2, 1] = value
    expected = (
        "m.onnx answers image 2 with NaN or infinite scores, and so 1 of 5 images; the preprocessing may"
    )
    with pytest.raises(UnfitModelError, match=re.escape(expected)):
        kind_of(outputs, "m.onnx")


def test_accuracy_is_the_share_classified_as_labelled() -> None:
    outputs = np.eye(4, dtype=np.float32)
    assert accuracy_of(outputs, np.array([0, 1, 2, 0])) == 0.75


def test_labels_beyond_the_models_classes_are_refused() -> None:
    def labelled(labels: list[int]) -> ImageSet:
        pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
        return ImageSet(pixels, np.array(labels), None, "digest", labels_from="d.npz: labels")

    check_labels(labelled([0, 9]), 10)
    check_labels(ImageSet(np.zeros((1, 2, 2, 3), np.uint8), None, None, "digest"), 10)
    expected = (
        "d.npz: labels: image 1 has label 10, the model has 10 classes (0 to 9), and 2 of 3 labels are "
        "beyond them; number the classes from 0, or give the model that these labels are of"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        check_labels(labelled([0, 10, 11]), 10)


def test_a_graph_that_tells_its_classes_is_believed() -> None:
    model = linear_classifier(classes=7)
    signature = read_signature(model, "m.onnx")
    assert count_classes(source_of(model), signature, np.zeros((1, 3, 8, 8), np.float32)) == 7


def test_a_graph_that_does_not_tell_its_classes_is_asked() -> None:
    model = untold_classes(classes=6)
    signature = read_signature(model, "m.onnx")
    assert signature.classes is None
    assert count_classes(source_of(model), signature, np.zeros((1, 3, 8, 8), np.float32)) == 6


def test_a_model_that_cannot_be_run_is_refused() -> None:
    model = untold_classes()
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(UnfitModelError, match=r"m\.onnx cannot be run: .*Nonsense.*; export the model again"):
        count_classes(source_of(model), read_signature(model, "m.onnx"), np.zeros((1, 3, 8, 8), np.float32))


def test_a_single_score_an_image_is_refused() -> None:
    model = untold_classes(classes=1)
    expected = (
        "m.onnx: output 'logits' has shape (1, 1) for 1 image(s), expected one row of at least 2 class scores"
    )
    with pytest.raises(UnfitModelError, match=re.escape(expected)):
        count_classes(source_of(model), read_signature(model, "m.onnx"), np.zeros((1, 3, 8, 8), np.float32))


def spread(n: int = 40, classes: int = 10) -> np.ndarray:
    return (np.eye(classes, dtype=np.float32)[np.arange(n) % classes] * 8) - 2


def test_sound_answers_bring_no_warning() -> None:
    assert list(warnings_of(spread(), "logits", 0.9)) == []
    assert list(warnings_of(spread(), "logits", None)) == []


def test_one_class_for_all_images_brings_a_warning_that_names_the_flags() -> None:
    outputs = np.tile(np.array([[0.0, 5.0, -1.0]], np.float32), (12, 1))
    (warning,) = warnings_of(outputs, "logits", None)
    assert warning == (
        "the model puts all 12 images in class 1; the preprocessing may be wrong "
        "(--scale, --mean, --std, --resize, --layout)"
    )


@pytest.mark.parametrize(
    ("classes", "accuracy", "near_chance"),
    [
        (10, 0.19, True),
        (10, 0.21, False),
        (2, 0.55, True),
        (2, 0.65, False),
        (100, 0.015, True),
        (100, 0.03, False),
    ],
)
def test_accuracy_near_chance_brings_a_warning(classes: int, accuracy: float, near_chance: bool) -> None:
    warnings = list(warnings_of(spread(200, classes), "logits", accuracy))
    told = f"accuracy is {accuracy:.1%}, little above chance for {classes} classes"
    assert any(told in text for text in warnings) == near_chance


@pytest.mark.parametrize(("classes", "accuracy", "warned"), [(43, 0.24, True), (43, 0.5, False)])
def test_accuracy_below_half_brings_a_milder_warning(classes: int, accuracy: float, warned: bool) -> None:
    warnings = list(warnings_of(spread(200, classes), "logits", accuracy))
    assert warnings == warned * [
        f"accuracy is only {accuracy:.1%}; unless the model is that weak, the preprocessing may be wrong "
        "(--scale, --mean, --std, --resize, --layout)"
    ]


def test_sigmoid_outputs_bring_a_warning() -> None:
    outputs = (1 / (1 + np.exp(-spread()))).astype(np.float32)
    (warning,) = warnings_of(outputs, kind_of(outputs, "m"), None)
    assert warning.startswith("the outputs lie within 0 to 1 but do not sum to 1, as those of sigmoids do")
