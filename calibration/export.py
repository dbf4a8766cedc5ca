"""From a repaired module back to the ONNX file it came from: same tensors in, same tensors out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Num
from onnx import TensorProto
from torch import Tensor, nn

from calibration.errors import ParityError
from calibration.torch_to_onnx import USUAL_OPSET, TensorFace, example_shape, to_onnx
from guard.artifact.signature import Signature

__all__ = ["LARGEST_DIFFERENCE", "ExportRecord", "export_onnx", "parity"]

LARGEST_DIFFERENCE: Final = 1e-4
"""Between a module and its file, times the largest logit where that is above 1."""

_HALF_DIFFERENCE: Final = 2e-3
_OLDEST_OPSET, _NEWEST_OPSET = 18, 23
_ELEMENTS: Final[Mapping[str, int]] = MappingProxyType(
    {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8}
)
_BATCHES: Final = (1, 3)


@dataclass(frozen=True)
class ExportRecord:
    """What the file says of how it was made.

    Attributes:
        repaired_by: Program and version.
        method: Repair that was applied.
        source_sha256: Digest of the file that was repaired.
    """

    repaired_by: str
    method: str
    source_sha256: str


def export_onnx(
    module: nn.Module,
    like: onnx.ModelProto | Signature,
    record: ExportRecord,
    *,
    images: Num[np.ndarray, "n ..."] | None = None,
) -> onnx.ModelProto:
    """Write a module as ONNX, with the names, types and free axes of the model that it comes from.

    Args:
        module: The network; runs in evaluation mode on a copy, so it is left as it is.
        like: The original graph, or its signature.
        record: Goes into the file's metadata, beside what the original says there.
        images: Real inputs to compare module and file on, beside random ones.

    Returns:
        One self-contained graph, whose answers were compared with the module's by ONNX Runtime at several
        batch sizes. Weights are float32; what comes in and goes out has the original's types.

    Raises:
        ModelError: If the module has operators that torch cannot export.
        ParityError: If the file's answers are not the module's.
    """
    source, sink = _faces(like)
    plain = _Faced(_plain_copy(module), half=sink.element == TensorProto.FLOAT16)
    proto = to_onnx(plain, source, sink, opset=_opset(like))
    for key, value in (_metadata(like) | vars(record)).items():
        proto.metadata_props.add(key=key, value=value)
    inputs = [_random_images(source, batch) for batch in _batches(source)]
    if images is not None:
        inputs += _cut(images, source)
    tolerance = _HALF_DIFFERENCE if sink.element == TensorProto.FLOAT16 else LARGEST_DIFFERENCE
    largest = parity(plain, proto, inputs)
    if not largest <= tolerance:
        raise ParityError(
            f"the exported model's logits differ from the module's by {largest:.2e} of the largest, expected "
            f"at most {tolerance:.0e}; the module computes what ONNX does not hold, or depends on its batch"
        )
    return proto


def parity(module: nn.Module, proto: onnx.ModelProto, inputs: Sequence[Num[np.ndarray, "..."]]) -> float:
    """Return the largest difference between a module's and a file's answers.

    Args:
        module: The network, in evaluation mode.
        proto: The file.
        inputs: Batches to run both on.

    Returns:
        The difference, divided by the largest logit of the batch where that is above 1; NaN where an answer
        is no number, infinite where the shapes differ.
    """
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name, largest = session.get_inputs()[0].name, 0.0
    for batch in inputs:
        with torch.no_grad():
            expected = module(torch.from_numpy(batch)).double().numpy()
        (got,) = session.run(None, {name: batch})
        if got.shape != expected.shape:
            return math.inf
        scale = max(1.0, float(np.abs(expected).max()))
        largest = float(np.maximum(largest, np.abs(got - expected).max() / scale))  # keeps NaN
    return largest


class _Faced(nn.Module):
    """A network between the types that its file shows."""

    def __init__(self, network: nn.Module, *, half: bool) -> None:
        super().__init__()
        self.network = network
        self.half_out = half

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits in the type that the file gives."""
        if images.dtype == torch.float16:
            images = images.float()
        logits: Tensor = self.network(images)
        return logits.half() if self.half_out else logits


def _plain_copy(module: nn.Module) -> nn.Module:
    plain = copy.deepcopy(module).cpu().float().eval()
    with torch.no_grad():
        for weight in plain.parameters():
            weight.data = weight.data.contiguous()  # channels last is no property of the file
    return plain


def _faces(like: onnx.ModelProto | Signature) -> tuple[TensorFace, TensorFace]:
    if isinstance(like, Signature):
        batch: int | str = like.fixed_batch or "batch"
        source = TensorFace(like.input_name, _ELEMENTS[like.datatype], (batch, *like.shape))
        classes: int | str = like.classes or "classes"
        return source, TensorFace(like.output_name, _ELEMENTS[like.output_datatype], (batch, classes))
    defaulted = {tensor.name for tensor in like.graph.initializer}
    source = next(
        TensorFace.of(value, free="free") for value in like.graph.input if value.name not in defaulted
    )
    return source, TensorFace.of(like.graph.output[0], free="free")


def _metadata(like: onnx.ModelProto | Signature) -> dict[str, str]:
    """Return what the original says of itself, such as the names of its classes."""
    return {} if isinstance(like, Signature) else {entry.key: entry.value for entry in like.metadata_props}


def _opset(like: onnx.ModelProto | Signature) -> int:
    if isinstance(like, Signature):
        return USUAL_OPSET
    version = next(entry.version for entry in like.opset_import if entry.domain in {"", "ai.onnx"})
    return min(max(version, _OLDEST_OPSET), _NEWEST_OPSET)


def _batches(source: TensorFace) -> tuple[int, ...]:
    first = (source.dimensions or ("batch",))[0]
    return (first,) if isinstance(first, int) else _BATCHES


def _cut(images: np.ndarray, source: TensorFace) -> list[np.ndarray]:
    """Return the images in batches that the file takes; where it takes one size only, without the rest."""
    size = _batches(source)[-1]
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    bound = len(_batches(source)) == 1
    return [batch for batch in batches if not bound or len(batch) == size]


def _random_images(source: TensorFace, batch: int) -> np.ndarray:
    generator = np.random.default_rng(batch)
    if source.element == TensorProto.UINT8:
        return generator.integers(0, 256, example_shape(source, batch), dtype=np.uint8)
    images = generator.random(example_shape(source, batch), dtype=np.float32)
    return images.astype(np.float16) if source.element == TensorProto.FLOAT16 else images
