"""Picking and writing by index."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from calibration.onnx_import import functions
from calibration.onnx_import.builder import SAMPLE_BATCHES, GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import Op
from calibration.onnx_import.slicing import slices_of
from calibration.onnx_import.values import Constant, Size, Value

__all__ = ["CONVERTERS"]


def _convert_gather(builder: GraphBuilder, op: Op) -> Any:
    """Take slices along an axis; rows of a weight by indices from the data are an embedding."""
    value, indices, axis = op.input(0), op.input(1), op.attribute("axis", 0)
    if isinstance(indices, Constant):
        return _gather_known(builder, value, indices.tensor, axis)
    table = value.tensor if isinstance(value, Constant) else None
    if table is not None and table.dim() == 2 and axis == 0 and table.is_floating_point():
        layer = nn.Embedding(table.shape[0], table.shape[1], device="meta")
        layer.weight = nn.Parameter(table.detach().clone())
        return builder.module(layer, builder.call(functions.cast, indices, torch.int64))
    return builder.call(functions.gather, value, indices, axis % builder.rank(value))


def _gather_known(builder: GraphBuilder, value: Value, indices: torch.Tensor, axis: int) -> Any:
    if indices.dim() == 0:
        return builder.call(torch.select, value, axis, int(indices.item()))
    axis %= builder.rank(value)
    if builder.fixed_batch is not None and builder.static_shape(value)[axis] is None:
        rows = _rows_taken(builder, value, indices)
        if rows is not None:
            return rows
    return builder.call(functions.gather, value, Constant(indices.to(torch.int64)), axis)


def _rows_taken(builder: GraphBuilder, value: Value, indices: torch.Tensor) -> Any:
    """Free a gather of its batch size: one that takes the same from every row, as ``as_strided`` becomes.

    The value holds the rows one after another, ``width`` elements each; None if the indices do not take the
    same of each.
    """
    batch = builder.fixed_batch or 1
    width = builder.sample_shapes(value)[0][0] // SAMPLE_BATCHES[0]
    if len(indices) != batch or builder.rank(value) > 1:
        return value if indices.tolist() == list(range(batch)) else None
    first = indices[0].reshape(-1).to(torch.int64)
    starts = torch.arange(batch).reshape(-1, 1) * width
    if not torch.equal(indices.reshape(batch, -1).to(torch.int64), first + starts):
        return None
    rows = builder.call(torch.reshape, value, (-1, width))
    taken = builder.call(torch.index_select, rows, 1, Constant(first))
    return builder.call(torch.reshape, taken, (-1, *indices.shape[1:]))


def _convert_gather_elements(builder: GraphBuilder, op: Op) -> Any:
    """Take one element for each index, along an axis."""
    return builder.call(functions.gather_elements, op.input(0), op.input(1), op.attribute("axis", 0))


def _convert_gather_nd(builder: GraphBuilder, op: Op) -> Any:
    """Take the slices that tuples of indices name."""
    return builder.call(functions.gather_nd, op.input(0), op.input(1), op.attribute("batch_dims", 0))


def _convert_scatter_elements(builder: GraphBuilder, op: Op) -> Any:
    """Write one element at each index, along an axis."""
    options = (op.attribute("axis", 0), op.attribute("reduction", "none"))
    return builder.call(functions.scatter_elements, op.input(0), op.input(1), op.input(2), *options)


def _convert_scatter_nd(builder: GraphBuilder, op: Op) -> Any:
    """Write slices where tuples of indices say."""
    reduction = op.attribute("reduction", "none")
    return builder.call(functions.scatter_nd, op.input(0), op.input(1), op.input(2), reduction)


def _convert_slice(builder: GraphBuilder, op: Op) -> Any:
    """Cut out a part of every axis, backwards where the step is negative."""
    value = op.input(0)
    shape = builder.static_shape(value)
    slices = list(slices_of(op, list(shape)))
    for axis, part in enumerate(slices):
        if part.step is not None and part.step < 0:
            value = _backwards(builder, op, value, axis, part)
            slices[axis] = slice(None)
    if all((part.start or 0, part.stop, part.step or 1) == (0, None, 1) for part in slices):
        return value
    return builder.call(operator.getitem, value, tuple(slices))


def _backwards(builder: GraphBuilder, op: Op, value: Value, axis: int, part: slice) -> Value:
    size = builder.static_shape(value)[axis]
    if size is None or isinstance(part.start, Size) or isinstance(part.stop, Size):
        op.refuse("goes backwards over an axis whose length depends on the batch")
    first = min(max(part.start + size if part.start < 0 else part.start, 0), size - 1)
    last = part.indices(size)[1]
    places = Constant(torch.tensor(range(first, last, part.step), dtype=torch.int64))
    turned: Value = builder.call(torch.index_select, value, axis, places)
    return turned


def _convert_trilu(builder: GraphBuilder, op: Op) -> Any:
    """Keep one triangle of a matrix."""
    diagonal = int(op.constant(1).tensor.item()) if op.has_input(1) else 0
    function = torch.triu if op.attribute("upper", 1) else torch.tril
    return builder.call(function, op.input(0), diagonal)


def _convert_one_hot(builder: GraphBuilder, op: Op) -> Any:
    """Mark each index along a new axis."""
    depth = int(op.constant(1).tensor.item())
    return builder.call(functions.one_hot, op.input(0), depth, op.input(2), op.attribute("axis", -1))


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "Gather": _convert_gather,
        "GatherElements": _convert_gather_elements,
        "GatherND": _convert_gather_nd,
        "OneHot": _convert_one_hot,
        "ScatterElements": _convert_scatter_elements,
        "ScatterND": _convert_scatter_nd,
        "Slice": _convert_slice,
        "Trilu": _convert_trilu,
    }
)
"""Operator, and what it becomes."""
