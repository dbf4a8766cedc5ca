"""Shape arithmetic on sizes that depend on the batch, done on Python numbers while the graph is imported.

These stand in for the ordinary converters wherever an input is :class:`Sizes` and none is data of the model.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.op import Op
from calibration.onnx_import.slicing import slices_of
from calibration.onnx_import.tensors import DTYPES
from calibration.onnx_import.values import Constant, Number, Size, Sizes, Value, as_array, from_array

__all__ = ["SIZE_CONVERTERS", "convert_sizes", "is_size_arithmetic"]

_BY_FIRST_INPUT: Final = frozenset({"Expand", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
"""Operators whose first input is what they work on; the others say how."""

_LONGEST: Final = 64
"""No shape has more axes; a constant with more elements is data."""

Arrays = list[np.ndarray]
SizeConverter = Callable[[Op, Arrays], Any]


def is_size_arithmetic(op: Op) -> bool:
    """Whether the node computes sizes from sizes."""
    given = [value for value in op.inputs if value is not None]
    if op.type not in SIZE_CONVERTERS or not any(isinstance(value, Sizes) for value in given):
        return False
    if op.type in _BY_FIRST_INPUT:
        return isinstance(given[0], Sizes) and all(isinstance(value, Constant) for value in given[1:])
    return all(isinstance(value, Sizes) or _is_short(value) for value in given)


def _is_short(value: Value) -> bool:
    return isinstance(value, Constant) and value.tensor.numel() <= _LONGEST


def convert_sizes(_: GraphBuilder, op: Op) -> Constant | Sizes:
    """Convert a node that :func:`is_size_arithmetic`."""
    arrays = [as_array(value) for value in op.inputs if isinstance(value, (Constant, Sizes))]
    result = SIZE_CONVERTERS[op.type](op, arrays)
    return from_array(np.asarray(result, dtype=object))


def _each(function: Callable[..., Any]) -> SizeConverter:
    """Apply a function of numbers element by element, shapes broadcast."""

    def convert(_: Op, arrays: Arrays) -> np.ndarray:
        spread = np.broadcast_arrays(*arrays)
        result = np.empty(spread[0].shape, dtype=object)
        for place in np.ndindex(result.shape):
            result[place] = function(*(array[place] for array in spread))
        return result

    return convert


def _divide(op: Op, arrays: Arrays) -> Any:
    """Divide; whole numbers (sizes are never negative) give whole numbers."""
    real = any(_is_real(number) for array in arrays for number in array.ravel())
    return _each(operator.truediv if real else operator.floordiv)(op, arrays)


def _is_real(number: Number) -> bool:
    return isinstance(number.samples[0] if isinstance(number, Size) else number, float)


def _cast(op: Op, arrays: Arrays) -> Any:
    to = op.attributes["to"]
    return _each(_to_whole if not DTYPES[to].is_floating_point else _to_real)(op, arrays[:1])


def _to_whole(number: Number) -> Number:
    if isinstance(number, Size):
        return number.floor() if _is_real(number) else number
    return int(number)


def _to_real(number: Number) -> Number:
    return number * 1.0


def _rounded(whole: Callable[[Any], Any]) -> SizeConverter:
    name = whole.__name__

    def apply(number: Number) -> Number:
        return getattr(number, name)() * 1.0 if isinstance(number, Size) else float(whole(number))

    return _each(apply)


def _equal(left: Number, right: Number) -> bool:
    one, two = (number.samples if isinstance(number, Size) else (number, number) for number in (left, right))
    return bool(one[0] == two[0] and one[1] == two[1])


def _where(condition: Number, left: Number, right: Number) -> Number:
    return left if condition else right


def _gather(op: Op, arrays: Arrays) -> Any:
    return np.take(arrays[0], arrays[1].astype(np.int64), axis=op.attribute("axis", 0))


def _slice(op: Op, arrays: Arrays) -> Any:
    return arrays[0][slices_of(op, list(arrays[0].shape))]


def _concat(op: Op, arrays: Arrays) -> Any:
    return np.concatenate(arrays, axis=op.attributes["axis"])


def _unsqueeze(op: Op, arrays: Arrays) -> Any:
    return np.expand_dims(arrays[0], tuple(op.axes() or ()))


def _squeeze(op: Op, arrays: Arrays) -> Any:
    axes = op.axes()
    return np.squeeze(arrays[0], tuple(axes) if axes else None)


def _reshape(_: Op, arrays: Arrays) -> Any:
    return arrays[0].reshape([int(size) for size in arrays[1].ravel()])


def _product(_: Op, arrays: Arrays) -> Any:
    return np.array([math.prod(arrays[0].ravel().tolist())], dtype=object)


def _identity(_: Op, arrays: Arrays) -> Any:
    return arrays[0]


def _expand(_: Op, arrays: Arrays) -> Any:
    sizes = [int(size) for size in arrays[1].ravel()]
    return np.broadcast_to(arrays[0], np.broadcast_shapes(arrays[0].shape, tuple(sizes)))


SIZE_CONVERTERS: Final[Mapping[str, SizeConverter]] = MappingProxyType(
    {
        "Add": _each(operator.add),
        "Cast": _cast,
        "Ceil": _rounded(math.ceil),
        "Concat": _concat,
        "Div": _divide,
        "Equal": _each(_equal),
        "Expand": _expand,
        "Floor": _rounded(math.floor),
        "Gather": _gather,
        "Identity": _identity,
        "Mod": _each(operator.mod),
        "Mul": _each(operator.mul),
        "Neg": _each(operator.neg),
        "ReduceProd": _product,
        "Reshape": _reshape,
        "Slice": _slice,
        "Squeeze": _squeeze,
        "Sub": _each(operator.sub),
        "Unsqueeze": _unsqueeze,
        "Where": _each(_where),
    }
)
"""Operator, and what it does to sizes."""
