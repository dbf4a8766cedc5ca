"""What the model's output is, and whether it answers as a classifier of these images should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import onnxruntime as ort
from jaxtyping import Int64
from onnx import TensorProto

from calibration.data import ImageSet
from calibration.errors import DataError
from calibration.model_source import ModelSource
from guard.arrays import Images, Logits, to_bfloat16
from guard.artifact.signature import Signature
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS

__all__ = ["Kind", "accuracy_of", "check_labels", "count_classes", "kind_of", "warnings_of"]

Kind = Literal["logits", "probabilities"]

_TOLERANCE = 1e-3
_LOW_ACCURACY: Final = 0.5  # below it a scan calls no model clean either
_PREPROCESSING_HINT = "the preprocessing may be wrong (--scale, --mean, --std, --resize, --layout)"


def count_classes(source: ModelSource, signature: Signature, row: Images) -> int:
    """Return the number of classes; where the graph does not say, the model is run on one image.

    Args:
        source: The model.
        signature: Its tensors.
        row: One image as the model takes it, with a batch axis of 1.

    Raises:
        UnfitModelError: If the output is no row of at least 2 class scores an image.
    """
    if signature.classes is not None:
        return signature.classes
    batch = np.repeat(row, signature.fixed_batch or 1, axis=0)
    shape = _shape_of_output(source, signature, batch)
    if len(shape) != 2 or shape[0] != len(batch) or shape[1] < 2:
        raise UnfitModelError(
            f"{source.path}: output {signature.output_name!r} has shape {shape} for {len(batch)} "
            f"image(s), expected one row of at least 2 class scores for each"
        )
    return shape[1]


def _shape_of_output(source: ModelSource, signature: Signature, batch: Images) -> tuple[int, ...]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(source.data, options, providers=["CPUExecutionProvider"])
        feed = {signature.input_name: _value_of(batch, signature)}
        [output] = session.run_with_ort_values([signature.output_name], feed)
        return tuple(output.shape())
    except ORT_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnfitModelError(f"{source.path} cannot be run: {reason}; export the model again") from error


def _value_of(batch: Images, signature: Signature) -> ort.OrtValue:
    if signature.datatype == "BF16":  # which numpy does not know
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(to_bfloat16(batch), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(batch)


def kind_of(outputs: Logits, where: str) -> Kind:
    """Tell logits from probabilities: rows that are non-negative and sum to 1 are probabilities.

    Args:
        outputs: The model's raw output on clean images.
        where: Name of the model, for errors.

    Raises:
        UnfitModelError: If an output is not finite.

    Examples:
        >>> kind_of(np.array([[0.25, 0.75]], np.float32), "model.onnx")
        'probabilities'
        >>> kind_of(np.array([[-1.0, 2.0]], np.float32), "model.onnx")
        'logits'
    """
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise UnfitModelError(
            f"{where} answers image {int(finite.argmin())} with NaN or infinite scores, and so "
            f"{int((~finite).sum())} of {len(outputs)} images; {_PREPROCESSING_HINT}, or the model is broken"
        )
    sums = outputs.sum(axis=1)
    normalised = bool((outputs >= 0).all() and (np.abs(sums - 1) <= _TOLERANCE).all())
    return "probabilities" if normalised else "logits"


def check_labels(images: ImageSet, classes: int) -> None:
    """Refuse labels that the model has no class for; where there are no labels there is nothing to refuse.

    Raises:
        DataError: Naming where the labels are from, and the first such label.
    """
    if images.labels is None:
        return
    beyond = images.labels >= classes
    if beyond.any():
        first = int(beyond.argmax())
        raise DataError(
            f"{images.labels_from}: image {first} has label {images.labels[first]}, the model has {classes} "
            f"classes (0 to {classes - 1}), and {int(beyond.sum())} of {len(images)} labels are beyond them; "
            f"number the classes from 0, or give the model that these labels are of"
        )


def accuracy_of(outputs: Logits, labels: Int64[np.ndarray, " n"]) -> float:
    """Return the share of rows whose highest score is the label's."""
    return float((outputs.argmax(axis=1) == labels).mean())


def warnings_of(outputs: Logits, kind: Kind, accuracy: float | None) -> Iterator[str]:
    """Yield what looks wrong in the model's answers to clean images.

    Args:
        outputs: The model's raw output.
        kind: What it was taken for.
        accuracy: Share classified as labelled, or None without labels.
    """
    classes = outputs.shape[1]
    predicted = np.unique(outputs.argmax(axis=1))
    if len(outputs) > 1 and len(predicted) == 1:
        yield f"the model puts all {len(outputs)} images in class {predicted[0]}; {_PREPROCESSING_HINT}"
    if accuracy is not None and accuracy < _barely_above_chance(classes):
        yield (
            f"accuracy is {accuracy:.1%}, little above chance for {classes} classes; {_PREPROCESSING_HINT}, "
            f"or the labels are of another numbering"
        )
    elif accuracy is not None and classes > 2 and accuracy < _LOW_ACCURACY:
        yield f"accuracy is only {accuracy:.1%}; unless the model is that weak, {_PREPROCESSING_HINT}"
    if kind == "logits" and outputs.min() >= 0.0 and outputs.max() <= 1.0:
        yield (
            "the outputs lie within 0 to 1 but do not sum to 1, as those of sigmoids do; they are taken for "
            "logits, and entropies will all be high: export the model's logits"
        )


def _barely_above_chance(classes: int) -> float:
    return min(2.0 / classes, 1.0 / classes + 0.1)
