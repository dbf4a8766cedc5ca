"""Shapes: reading them, changing them, joining and splitting along them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from calibration.onnx_import.builder import SAMPLE_BATCHES, GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import expand, new_range
from calibration.onnx_import.op import Op
from calibration.onnx_import.slicing import numbers_of
from calibration.onnx_import.values import Constant, Number, Size, Value, from_array

__all__ = ["CONVERTERS"]


def _convert_shape(builder: GraphBuilder, op: Op) -> Any:
    """Read the shape, or a part of it."""
    part = slice(op.attribute("start", 0), op.attributes.get("end"))
    return from_array(np.array(builder.shape(op.input(0))[part], dtype=object))


def _convert_size(builder: GraphBuilder, op: Op) -> Any:
    """Count the elements."""
    return from_array(np.array(math.prod(builder.shape(op.input(0))), dtype=object))


def _convert_reshape(builder: GraphBuilder, op: Op) -> Any:
    """Reshape; 0 keeps an axis and -1 takes what is left. A batch size built into the graph is set free."""
    value, wanted = op.input(0), numbers_of(op, 1)
    shape = builder.shape(value)
    if not op.attribute("allowzero", 0):
        wanted = [
            shape[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(wanted)
        ]
    if builder.fixed_batch is not None and not _holds(builder, value, wanted):
        wanted = _freed(builder, value, wanted)
    return builder.call(torch.reshape, value, tuple(wanted))


def _holds(builder: GraphBuilder, value: Value, wanted: list[Number]) -> bool:
    """Whether a shape holds as many elements as the value has, at both sample batches."""
    for which, shape in enumerate(builder.sample_shapes(value)):
        known = [size.samples[which] if isinstance(size, Size) else size for size in wanted]
        product = math.prod(size for size in known if size != -1)
        fits = math.prod(shape) % product == 0 if -1 in known and product else math.prod(shape) == product
        if not fits:
            return False
    return True


def _freed(builder: GraphBuilder, value: Value, wanted: list[Number]) -> list[Number]:
    """Return the shape with -1 for the axis that holds the batch.

    It is the first axis as long as the batch, if one is. If none is, the batch was joined to another axis,
    and in a batch of one it cannot be seen to which: (17, n, 4, 8) to (17, 32) may join the n to the 17 or to
    the 32. It is joined to what stands before it if the last axis then holds all that stands after it; else
    it is the first axis that is not as it was.
    """
    if -1 in wanted:
        return wanted
    static, (sample, _) = builder.static_shape(value), builder.sample_shapes(value)
    batch = max((axis for axis, size in enumerate(static) if size is None), default=0)
    repeated = sample[batch] // SAMPLE_BATCHES[0]
    if builder.fixed_batch in wanted:
        place = wanted.index(builder.fixed_batch)
    elif len(wanted) > 1 and wanted[-1] == repeated * math.prod(sample[batch + 1 :]):
        place = len(wanted) - 2
    else:
        kept = [axis < len(static) and static[axis] == size for axis, size in enumerate(wanted)]
        place = kept.index(False) if False in kept else 0
    return [*wanted[:place], -1, *wanted[place + 1 :]]


def _convert_flatten(builder: GraphBuilder, op: Op) -> Any:
    """Make a matrix, split before an axis."""
    value, rank = op.input(0), builder.rank(op.input(0))
    axis = op.attribute("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return builder.call(torch.flatten, value, 1)
    shape = builder.shape(value)
    tail = math.prod(shape[axis:])
    lead = math.prod(shape[:axis]) if isinstance(tail, Size) else -1
    return builder.call(torch.reshape, value, (lead, -1 if isinstance(tail, Size) else tail))


def _convert_squeeze(builder: GraphBuilder, op: Op) -> Any:
    """Drop axes of length 1, all of them where none are named."""
    value, axes = op.input(0), op.axes()
    if axes is None:
        axes = [axis for axis, size in enumerate(builder.static_shape(value)) if size == 1]
    return builder.call(torch.squeeze, value, tuple(axes))


def _convert_unsqueeze(builder: GraphBuilder, op: Op) -> Any:
    """Add axes of length 1; each is counted in the result."""
    value, axes = op.input(0), op.axes() or []
    rank = builder.rank(value) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = builder.call(torch.unsqueeze, value, axis)
    return value


def _convert_transpose(builder: GraphBuilder, op: Op) -> Any:
    """Permute the axes, reversing them where no order is given."""
    order = op.attribute("perm", list(reversed(range(builder.rank(op.input(0))))))
    return builder.call(torch.permute, op.input(0), tuple(order))


def _convert_expand(builder: GraphBuilder, op: Op) -> Any:
    """Broadcast to a shape, in both directions."""
    value, wanted = op.input(0), numbers_of(op, 1)
    have = builder.shape(value)
    if builder.fixed_batch not in {None, 1} and len(wanted) == len(have) and wanted[0] == builder.fixed_batch:
        wanted = [builder.shape(builder.source)[0], *wanted[1:]]
    rank = max(len(have), len(wanted))
    padded = [1] * (rank - len(have)) + have
    wanted = [1] * (rank - len(wanted)) + wanted
    sizes = [new if _is_one(old) else old for old, new in zip(padded, wanted, strict=True)]
    if rank == len(have) and all(_is_one(old) == _is_one(new) for old, new in zip(have, sizes, strict=True)):
        return value
    return builder.call(expand, value, tuple(sizes))


def _is_one(size: Number) -> bool:
    return not isinstance(size, Size) and size == 1


def _convert_tile(builder: GraphBuilder, op: Op) -> Any:
    """Repeat along every axis."""
    return builder.call(torch.tile, op.input(0), tuple(numbers_of(op, 1)))


def _convert_concat(builder: GraphBuilder, op: Op) -> Any:
    """Join along an axis; in a graph bound to one batch size, what has no batch yet is repeated for it."""
    values = [value for value in op.inputs if value is not None]
    axis = op.attributes["axis"]
    if builder.fixed_batch is not None and axis % builder.rank(values[0]) != 0:
        values = [_with_batch(builder, value, values) for value in values]
    return builder.call(torch.cat, values, axis)


def _with_batch(builder: GraphBuilder, value: Value, values: list[Value]) -> Value:
    batches = [builder.shape(other)[0] for other in values]
    batch = next((size for size in batches if isinstance(size, Size)), None)
    if isinstance(value, Constant) and len(value.tensor) == builder.fixed_batch:
        same = bool((value.tensor == value.tensor[:1]).all())
        value = Constant(value.tensor[:1], value.trainable, value.name) if same else value
    if batch is None or not _is_one(builder.shape(value)[0]):
        return value
    repeated: Value = builder.call(expand, value, (batch, *[-1] * (builder.rank(value) - 1)))
    return repeated


def _convert_split(builder: GraphBuilder, op: Op) -> Any:
    """Cut along an axis, into given lengths or equal ones; the last may be shorter."""
    value, axis = op.input(0), op.attribute("axis", 0)
    lengths = op.attributes.get("split") or op.numbers(1)
    if lengths is None:
        size = builder.static_shape(value)[axis]
        if size is None:
            op.refuse("cuts an axis whose length depends on the batch into equal parts")
        count = op.attribute("num_outputs", len(op.node.output))
        step = -(-size // count)
        lengths = [min(step, size - start) for start in range(0, size, step)]
    parts = builder.call(torch.split, value, tuple(lengths), axis)
    return tuple(builder.item(parts, index) for index in range(len(lengths)))


def _convert_constant_of_shape(builder: GraphBuilder, op: Op) -> Any:
    """Make a tensor of one value, 0 where none is given."""
    filling = op.attribute("value", torch.zeros(1))
    return builder.full(numbers_of(op, 0), filling.reshape(-1)[0].item(), filling.dtype)


def _convert_range(builder: GraphBuilder, op: Op) -> Any:
    """Count from one number to another."""
    bounds = [number for index in range(3) for number in numbers_of(op, index)]
    real = any(isinstance(number, float) for number in bounds)
    dtype = torch.float32 if real else torch.int64
    if any(isinstance(number, Size) for number in bounds):
        return builder.call(new_range, builder.source, *bounds, dtype)
    return builder.call(torch.arange, *bounds, dtype=dtype)


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "Concat": _convert_concat,
        "ConstantOfShape": _convert_constant_of_shape,
        "Expand": _convert_expand,
        "Flatten": _convert_flatten,
        "Range": _convert_range,
        "Reshape": _convert_reshape,
        "Shape": _convert_shape,
        "Size": _convert_size,
        "Split": _convert_split,
        "Squeeze": _convert_squeeze,
        "Tile": _convert_tile,
        "Transpose": _convert_transpose,
        "Unsqueeze": _convert_unsqueeze,
    }
)
"""Operator, and what it becomes."""
