"""Arithmetic, comparison and logic, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import cast, divide_whole
from calibration.onnx_import.op import Op
from calibration.onnx_import.ops_linear import take_bias
from calibration.onnx_import.values import Constant, Sizes, Value

__all__ = ["CONVERTERS"]


def _unary(function: Callable[..., Any]) -> Converter:
    return lambda builder, op: builder.call(function, op.input(0))


def _binary(function: Callable[..., Any]) -> Converter:
    def convert(builder: GraphBuilder, op: Op) -> Any:
        return builder.call(function, *_operands(builder, op))

    return convert


def _of_tensors(function: Callable[..., Any]) -> Converter:
    """Combine two tensors by a function of torch that takes no number in place of either."""
    return lambda builder, op: builder.call(function, op.input(0), op.input(1))


def _variadic(function: Callable[..., Any]) -> Converter:
    """Combine any number of inputs, two at a time."""

    def convert(builder: GraphBuilder, op: Op) -> Any:
        values = [value for value in op.inputs if value is not None]
        return functools.reduce(lambda left, right: builder.call(function, left, right), values)

    return convert


def _operands(builder: GraphBuilder, op: Op) -> list[Any]:
    """Return both inputs; a single number becomes one of Python's, what normalises the image is frozen."""
    values = [op.input(0), op.input(1)]
    for index, other in ((0, 1), (1, 0)):
        constant = values[index]
        if isinstance(constant, Constant) and not isinstance(values[other], Constant):
            values[index] = _constant_operand(builder, constant, values[other])
    return values


def _constant_operand(builder: GraphBuilder, constant: Constant, other: Value) -> Any:
    tensor = constant.tensor
    if tensor.numel() == 1 and tensor.dim() <= builder.rank(other) and builder.rank(other) > 0:
        return tensor.item()
    if not isinstance(other, Sizes) and not builder.is_weighted(other):
        return Constant(tensor, trainable=False, name=constant.name)
    return constant


def _convert_add(builder: GraphBuilder, op: Op) -> Any:
    """Add; a constant added to the only use of a linear layer without bias becomes its bias."""
    for value, constant in ((op.input(0), op.input(1)), (op.input(1), op.input(0))):
        if isinstance(constant, Constant) and take_bias(builder, value, constant.tensor):
            return value
    return _binary(torch.add)(builder, op)


def _convert_div(builder: GraphBuilder, op: Op) -> Any:
    """Divide; whole numbers round towards zero."""
    whole = not builder.dtype(op.input(0)).is_floating_point
    return _binary(divide_whole if whole else torch.div)(builder, op)


def _convert_mod(builder: GraphBuilder, op: Op) -> Any:
    """Take the remainder, with the sign of the divisor, or of the dividend where ``fmod`` says so."""
    convert = _of_tensors(torch.fmod) if op.attribute("fmod", 0) else _binary(torch.remainder)
    return convert(builder, op)


def _convert_pow(builder: GraphBuilder, op: Op) -> Any:
    """Raise to a power; the result has the type of the base."""
    result = _binary(torch.pow)(builder, op)
    dtype = builder.dtype(op.input(0))
    return result if builder.dtype(result) == dtype else builder.call(cast, result, dtype)


def _convert_mean(builder: GraphBuilder, op: Op) -> Any:
    """Take the mean of several tensors."""
    total = _variadic(torch.add)(builder, op)
    return builder.call(torch.div, total, len(op.inputs))


def _convert_where(builder: GraphBuilder, op: Op) -> Any:
    """Choose element by element."""
    return builder.call(torch.where, op.input(0), op.input(1), op.input(2))


def _convert_is_inf(builder: GraphBuilder, op: Op) -> Any:
    """Find infinite elements, of one sign or of both."""
    negative, positive = op.attribute("detect_negative", 1), op.attribute("detect_positive", 1)
    function = {(1, 1): torch.isinf, (0, 1): torch.isposinf, (1, 0): torch.isneginf}.get((negative, positive))
    if function is None:
        op.refuse("looks for infinities of neither sign")
    return builder.call(function, op.input(0))


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "Abs": _unary(torch.abs),
        "Acos": _unary(torch.acos),
        "Acosh": _unary(torch.acosh),
        "Add": _convert_add,
        "And": _of_tensors(torch.logical_and),
        "Asin": _unary(torch.asin),
        "Asinh": _unary(torch.asinh),
        "Atan": _unary(torch.atan),
        "Atanh": _unary(torch.atanh),
        "BitwiseAnd": _binary(torch.bitwise_and),
        "BitwiseNot": _unary(torch.bitwise_not),
        "BitwiseOr": _binary(torch.bitwise_or),
        "BitwiseXor": _binary(torch.bitwise_xor),
        "Ceil": _unary(torch.ceil),
        "Cos": _unary(torch.cos),
        "Cosh": _unary(torch.cosh),
        "Div": _convert_div,
        "Equal": _of_tensors(torch.eq),
        "Erf": _unary(torch.erf),
        "Exp": _unary(torch.exp),
        "Floor": _unary(torch.floor),
        "Greater": _of_tensors(torch.gt),
        "GreaterOrEqual": _of_tensors(torch.ge),
        "IsInf": _convert_is_inf,
        "IsNaN": _unary(torch.isnan),
        "Less": _of_tensors(torch.lt),
        "LessOrEqual": _of_tensors(torch.le),
        "Log": _unary(torch.log),
        "Max": _variadic(torch.maximum),
        "Mean": _convert_mean,
        "Min": _variadic(torch.minimum),
        "Mod": _convert_mod,
        "Mul": _binary(torch.mul),
        "Neg": _unary(torch.neg),
        "Not": _unary(torch.logical_not),
        "Or": _of_tensors(torch.logical_or),
        "Pow": _convert_pow,
        "Reciprocal": _unary(torch.reciprocal),
        "Round": _unary(torch.round),
        "Sign": _unary(torch.sign),
        "Sin": _unary(torch.sin),
        "Sinh": _unary(torch.sinh),
        "Sqrt": _unary(torch.sqrt),
        "Sub": _binary(torch.sub),
        "Sum": _variadic(torch.add),
        "Tan": _unary(torch.tan),
        "Where": _convert_where,
        "Xor": _of_tensors(torch.logical_xor),
    }
)
"""Operator, and what it becomes."""
