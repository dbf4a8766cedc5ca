"""Matrix products: ``Gemm`` and ``MatMul`` with a constant matrix become ``nn.Linear``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Constant, Value

__all__ = ["CONVERTERS", "linear", "take_bias"]


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with these weights, ``(out, in)`` and ``(out,)``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def take_bias(builder: GraphBuilder, value: Value, bias: Tensor) -> bool:
    """Give a linear layer that waits for a bias this one, if it fits; return whether it did."""
    layer = builder.awaiting_bias.get(value) if isinstance(value, torch.fx.Node) else None
    if layer is None or bias.shape[-1:] != (layer.out_features,) or bias.numel() != layer.out_features:
        return False
    if bias.dim() > builder.rank(value):
        return False
    layer.bias = nn.Parameter(bias.detach().reshape(-1).clone())
    del builder.awaiting_bias[value]  # type: ignore[arg-type]
    return True


def _convert_gemm(builder: GraphBuilder, op: Op) -> Any:
    """Matrix product with factors, transposes and a summand."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    weight, summand = op.input(1), op.optional(2)
    if isinstance(weight, Constant) and not isinstance(op.input(0), Constant):
        matrix = (weight.tensor if op.attribute("transB", 0) else weight.tensor.T) * alpha
        bias = _row_of(summand, matrix.shape[0])
        if summand is None or bias is not None:
            layer = linear(matrix, None if bias is None else bias * beta)
            name = summand.name if isinstance(summand, Constant) else ""
            return builder.module(layer, _transposed(builder, op, 0), weight=weight.name, bias=name)
    product = builder.call(torch.matmul, _transposed(builder, op, 0), _transposed(builder, op, 1))
    product = product if alpha == 1.0 else builder.call(torch.mul, product, alpha)
    if summand is None:
        return product
    return builder.call(torch.add, product, builder.call(torch.mul, summand, beta))


def _row_of(summand: Value | None, width: int) -> Tensor | None:
    """Return a constant summand as one row, if it is the same for every row."""
    if not isinstance(summand, Constant) or summand.tensor.numel() not in {1, width}:
        return None
    tensor = summand.tensor
    if tensor.numel() == width > 1 and tensor.shape[-1] != width:
        return None
    return tensor.reshape(-1).expand(width)


def _transposed(builder: GraphBuilder, op: Op, index: int) -> Value:
    value = op.input(index)
    flag = ("transA", "transB")[index]
    turned: Value = builder.call(torch.transpose, value, 0, 1) if op.attribute(flag, 0) else value
    return turned


def _convert_matmul(builder: GraphBuilder, op: Op) -> Any:
    """Matrix product; a linear layer that may still be given a bias where its weight is constant."""
    data, weight = op.input(0), op.input(1)
    is_matrix = (
        isinstance(weight, Constant) and weight.tensor.dim() == 2 and weight.tensor.is_floating_point()
    )
    if not isinstance(weight, Constant) or not is_matrix or isinstance(data, Constant):
        return builder.call(torch.matmul, data, weight)
    layer = linear(weight.tensor.T, None)
    result = builder.module(layer, data, weight=weight.name, bias=op.bias_name)
    if op.bias_name:
        builder.awaiting_bias[result] = layer
    return result


def _convert_einsum(builder: GraphBuilder, op: Op) -> Any:
    """Einstein's sum over named axes."""
    equation = op.attributes["equation"].replace(" ", "")
    return builder.call(torch.einsum, equation, *(value for value in op.inputs if value is not None))


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "Einsum": _convert_einsum,
        "Gemm": _convert_gemm,
        "MatMul": _convert_matmul,
    }
)
"""Operator, and what it becomes."""
