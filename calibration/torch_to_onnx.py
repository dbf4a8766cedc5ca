"""Torch's ONNX exporter, made quiet, and its result without notes of the machine that ran it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from calibration.errors import ModelError

__all__ = ["USUAL_OPSET", "TensorFace", "example_shape", "to_onnx"]

USUAL_OPSET: Final = 20
_OPEN_SIDE: Final = 64
"""Length that an open axis of space takes for export; most networks take images of that size."""


@dataclass(frozen=True)
class TensorFace:
    """How one input or output of a model looks from outside.

    Attributes:
        element: ONNX element type.
        dimensions: A number, or the name of a free axis; None where the rank is not told.
    """

    name: str
    element: int
    dimensions: tuple[int | str, ...] | None

    @classmethod
    def of(cls, value: onnx.ValueInfoProto, *, free: str) -> TensorFace:
        """Read one off a graph; axes without a name are called after ``free``."""
        tensor = value.type.tensor_type
        dimensions = tuple(
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{free}_{axis}"
            for axis, dim in enumerate(tensor.shape.dim)
        )
        return cls(value.name, tensor.elem_type, dimensions if tensor.HasField("shape") else None)


def to_onnx(
    program: nn.Module | torch.export.ExportedProgram,
    source: TensorFace,
    sink: TensorFace,
    *,
    opset: int = USUAL_OPSET,
    optimize: bool = True,
) -> onnx.ModelProto:
    """Export by torch's exporter, quietly, and drop its notes: they hold paths of this machine.

    Args:
        program: A module in evaluation mode, or an exported program.
        source: The input to give it.
        sink: The output to give it.
        opset: ONNX operators to write.
        optimize: Whether constants are folded, and batch norm into convolutions.

    Raises:
        ModelError: If torch cannot export it.
    """
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                () if isinstance(program, torch.export.ExportedProgram) else (_example(source),),
                dynamo=True,
                input_names=[source.name],
                output_names=[sink.name],
                dynamic_shapes=_free_axes(program, source),
                opset_version=opset,
                optimize=optimize,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ModelError(f"torch cannot export the module to ONNX: {reason}") from error
    proto = made.model_proto  # type: ignore[union-attr]
    _name_axes(proto, source, sink)
    return _without_notes(proto)


def example_shape(source: TensorFace, batch: int) -> list[int]:
    """Return a shape of the input; free axes of space take a length that most networks do."""
    first, *rest = source.dimensions or ()
    return [
        first if isinstance(first, int) else batch,
        *(size if isinstance(size, int) else _OPEN_SIDE for size in rest),
    ]


def _example(source: TensorFace) -> Tensor:
    types: dict[int, torch.dtype] = {TensorProto.UINT8: torch.uint8, TensorProto.FLOAT16: torch.float16}
    return torch.zeros(example_shape(source, 2), dtype=types.get(source.element, torch.float32))


def _free_axes(program: Any, source: TensorFace) -> Any:
    if isinstance(program, torch.export.ExportedProgram):
        return None
    free = {
        axis: torch.export.Dim(f"axis{axis}")
        for axis, size in enumerate(source.dimensions or ())
        if isinstance(size, str)
    }
    return (free or None,)


def _name_axes(proto: onnx.ModelProto, source: TensorFace, sink: TensorFace) -> None:
    """Declare input and output as they were, free axes under their names."""
    for value, face in ((proto.graph.input[0], source), (proto.graph.output[0], sink)):
        dimensions = None if face.dimensions is None else list(face.dimensions)
        value.CopyFrom(helper.make_tensor_value_info(face.name, face.element, dimensions))
    del proto.graph.value_info[:]


def _without_notes(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = proto.graph
    parts: list[Any] = [proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in [*parts, *proto.functions]:
        part.ClearField("doc_string")
        del part.metadata_props[:]
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines to itself: it raises when something is wrong."""
    names = ("torch.onnx", "torch.export", "torch._subclasses.fake_tensor", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
