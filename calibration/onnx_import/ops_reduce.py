"""Reductions over axes, and what ranks or accumulates along one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from calibration.onnx_import import functions
from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import Op

__all__ = ["CONVERTERS"]

_NOTHING_TO_REDUCE: Final = (torch.sum, torch.mean, torch.amax, torch.amin, functions.reduce_product)
"""Reductions that leave a single element as it is."""


def _reduce(function: Callable[..., Any]) -> Converter:
    """Reduce over the axes given, over all where none are, or not at all where the node says so."""

    def convert(builder: GraphBuilder, op: Op) -> Any:
        axes = op.axes()
        if not axes and op.attribute("noop_with_empty_axes", 0):
            if function not in _NOTHING_TO_REDUCE:
                op.refuse("reduces over no axes, which is known for sums, means, products and extremes only")
            return op.input(0)
        chosen = tuple(axes or range(builder.rank(op.input(0))))
        result = builder.call(function, op.input(0), chosen, keepdim=bool(op.attribute("keepdims", 1)))
        dtype = builder.dtype(op.input(0))  # torch sums whole numbers as int64
        return result if builder.dtype(result) == dtype else builder.call(functions.cast, result, dtype)

    return convert


def _best(function: Callable[..., Any]) -> Converter:
    """Find the place of the largest or smallest along an axis; the first of equals, or the last."""

    def convert(builder: GraphBuilder, op: Op) -> Any:
        axis, keepdim = op.attribute("axis", 0), bool(op.attribute("keepdims", 1))
        if not op.attribute("select_last_index", 0):
            return builder.call(function, op.input(0), axis, keepdim)
        turned = builder.call(function, builder.call(torch.flip, op.input(0), (axis,)), axis, keepdim)
        return builder.call(torch.rsub, turned, builder.shape(op.input(0))[axis] - 1)

    return convert


def _convert_cumsum(builder: GraphBuilder, op: Op) -> Any:
    """Running sum along an axis; from the end, or without the element itself, where the node says so."""
    axis = int(op.constant(1).tensor.item())
    options = {"exclusive": bool(op.attribute("exclusive", 0)), "reverse": bool(op.attribute("reverse", 0))}
    return builder.call(functions.running_sum, op.input(0), axis, **options)


def _convert_top_k(builder: GraphBuilder, op: Op) -> Any:
    """Return the largest or smallest along an axis and where they are."""
    count = int(op.constant(1).tensor.item())
    largest, ordered = bool(op.attribute("largest", 1)), bool(op.attribute("sorted", 1))
    found = builder.call(torch.topk, op.input(0), count, op.attribute("axis", -1), largest, ordered)
    return builder.item(found, 0), builder.item(found, 1)


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "ArgMax": _best(torch.argmax),
        "ArgMin": _best(torch.argmin),
        "CumSum": _convert_cumsum,
        "ReduceL1": _reduce(functions.reduce_l1),
        "ReduceL2": _reduce(functions.reduce_l2),
        "ReduceLogSum": _reduce(functions.reduce_log_sum),
        "ReduceLogSumExp": _reduce(torch.logsumexp),
        "ReduceMax": _reduce(torch.amax),
        "ReduceMean": _reduce(torch.mean),
        "ReduceMin": _reduce(torch.amin),
        "ReduceProd": _reduce(functions.reduce_product),
        "ReduceSum": _reduce(torch.sum),
        "ReduceSumSquare": _reduce(functions.reduce_sum_square),
        "TopK": _convert_top_k,
    }
)
"""Operator, and what it becomes."""
