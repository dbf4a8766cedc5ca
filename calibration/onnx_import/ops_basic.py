"""Constants, types, copies, and dropout."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import cast
from calibration.onnx_import.naming import is_generic
from calibration.onnx_import.op import Op
from calibration.onnx_import.tensors import dtype_of
from calibration.onnx_import.values import Constant

__all__ = ["CONVERTERS"]

_CONSTANTS: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
)


def _convert_constant(_: GraphBuilder, op: Op) -> Constant:
    """A tensor written into the node; some exporters keep weights so."""
    tensor = op.attributes.get("value")
    if isinstance(tensor, torch.Tensor):
        return Constant(tensor, trainable=tensor.is_floating_point() and tensor.dim() > 0)
    for name, dtype in _CONSTANTS.items():
        if name in op.attributes:
            return Constant(torch.tensor(op.attributes[name], dtype=dtype))
    return op.refuse("holds strings or a sparse tensor, which cannot be trained")


def _convert_identity(_: GraphBuilder, op: Op) -> Any:
    """Nothing; a copied weight takes the copy's name, for exporters merge weights that happen to be equal."""
    value = op.input(0)
    if isinstance(value, Constant):
        name = op.node.output[0]
        return Constant(value.tensor, value.trainable, value.name if is_generic(name) else name)
    return value


def _convert_cast(builder: GraphBuilder, op: Op) -> Any:
    """Another type; every floating-point one is float32 here."""
    dtype = dtype_of(op.attributes["to"], f"{op.where}: the result of node {op.node.name!r}")
    value = op.input(0)
    return value if builder.dtype(value) == dtype else builder.call(cast, value, dtype)


def _convert_cast_like(builder: GraphBuilder, op: Op) -> Any:
    """The type of another tensor."""
    return builder.call(cast, op.input(0), builder.dtype(op.input(1)))


def _convert_dropout(builder: GraphBuilder, op: Op) -> Any:
    """Dropout that drops in training mode, whatever mode the graph was exported in."""
    if any(op.used[1:]):
        op.refuse("gives its mask, and only its output is known")
    ratio = op.attributes.get("ratio")
    if ratio is None:
        ratio = op.constant(1).tensor.item() if op.has_input(1) else 0.5
    return builder.module(nn.Dropout(ratio), op.input(0))


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "Cast": _convert_cast,
        "CastLike": _convert_cast_like,
        "Constant": _convert_constant,
        "Dropout": _convert_dropout,
        "Identity": _convert_identity,
    }
)
"""Operator, and what it becomes."""
