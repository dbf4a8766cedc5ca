"""Pooling, by windows and over the whole image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import power_sum_root, sum_windows
from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Constant, Value
from calibration.onnx_import.windows import Windows, pad, read_windows

__all__ = ["CONVERTERS"]

_MAX: Final[tuple[Callable[..., nn.Module], ...]] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE: Final[tuple[Callable[..., nn.Module], ...]] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE: Final = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def _windows(builder: GraphBuilder, op: Op) -> Windows:
    windows = read_windows(builder, op, tuple(op.attributes["kernel_shape"]))
    if len(windows.kernel) not in {1, 2, 3}:
        op.refuse(f"has {len(windows.kernel)} axes of space, and only 1 to 3 are known")
    if op.attribute("auto_pad", "NOTSET").startswith("SAME"):
        _refuse_ambiguous(op, windows)
    return windows


def _refuse_ambiguous(op: Op, windows: Windows) -> None:
    """Refuse forms of SAME for which ONNX Runtime does not do what the standard says."""
    gaps = any(stride > size for stride, size in zip(windows.stride, windows.kernel, strict=True))
    if gaps or set(windows.dilation) != {1}:
        op.refuse("pads to SAME with dilated windows or gaps between them; export it with explicit padding")


def _fits_layer(windows: Windows) -> bool:
    """Whether torch's layers take this padding: equal on both sides, at most half a window."""
    half = all(2 * width <= size for width, size in zip(windows.begin, windows.kernel, strict=True))
    return windows.symmetric and half and min(windows.begin) >= 0


def _overhang(builder: GraphBuilder, op: Op, windows: Windows) -> tuple[int, ...]:
    """Return how much further than the padding the last windows reach, where they may."""
    if not windows.ceil:
        return (0,) * len(windows.kernel)
    sizes = builder.static_shape(op.input(0))[2:]
    if None in sizes:
        op.refuse("rounds up over an image whose size the graph leaves open; fix its height and width")
    return tuple(windows.overhang(axis, size) for axis, size in enumerate(sizes) if size is not None)


def _reaching_end(windows: Windows, overhang: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(end + over for end, over in zip(windows.end, overhang, strict=True))


def _convert_max_pool(builder: GraphBuilder, op: Op) -> Any:
    """Maximum of every window."""
    if any(op.used[1:]):
        op.refuse("gives the places of the maxima, and only the maxima are known")
    windows, data, padding = _windows(builder, op), op.input(0), (0,) * len(op.attributes["kernel_shape"])
    ceil = windows.ceil
    if _fits_layer(windows):
        padding = windows.begin
    else:
        end = _reaching_end(windows, _overhang(builder, op, windows))
        data, ceil = pad(builder, data, windows.begin, end, -math.inf), False
    layer = _MAX[len(windows.kernel) - 1](
        windows.kernel, windows.stride, padding, windows.dilation, ceil_mode=ceil
    )
    return builder.module(layer, data)


def _convert_average_pool(builder: GraphBuilder, op: Op) -> Any:
    """Mean of every window, the padding counted or not."""
    windows = _windows(builder, op)
    counted = bool(op.attribute("count_include_pad", 0))
    plain = set(windows.dilation) == {1} and (not windows.ceil or not windows.padded)
    if plain and _fits_layer(windows):
        layer = _AVERAGE[len(windows.kernel) - 1](
            windows.kernel, windows.stride, windows.begin, windows.ceil, counted or not windows.padded
        )
        return builder.module(layer, op.input(0))
    total, number = _window_sums(builder, op, windows, op.input(0), counted=counted)
    return builder.call(torch.div, total, number)


def _window_sums(
    builder: GraphBuilder, op: Op, windows: Windows, data: Value, *, counted: bool
) -> tuple[Any, Any]:
    """Return the sum of every window, and how many pixels it has."""
    overhang = _overhang(builder, op, windows)
    end = _reaching_end(windows, overhang)
    geometry = (windows.kernel, windows.stride, windows.dilation)
    total = builder.call(sum_windows, pad(builder, data, windows.begin, end, 0.0), *geometry)
    sizes = builder.static_shape(data)[2:]
    if None in sizes:
        op.refuse("averages over an image whose size the graph leaves open; fix its height and width")
    ones: Any = Constant(torch.ones((1, 1, *(size for size in sizes if size is not None))))
    ones = pad(builder, ones, windows.begin, windows.end, float(counted))
    ones = pad(builder, ones, (0,) * len(overhang), overhang, 0.0)
    return total, builder.call(sum_windows, ones, *geometry)


def _convert_lp_pool(builder: GraphBuilder, op: Op) -> Any:
    """Root of the sum of powers of every window."""
    windows, order = _windows(builder, op), op.attribute("p", 2)
    end = _reaching_end(windows, _overhang(builder, op, windows))
    powers = builder.call(torch.pow, builder.call(torch.abs, op.input(0)), order)
    padded = pad(builder, powers, windows.begin, end, 0.0)
    total = builder.call(sum_windows, padded, windows.kernel, windows.stride, windows.dilation)
    return builder.call(power_sum_root, total, order)


def _convert_global_lp_pool(builder: GraphBuilder, op: Op) -> Any:
    """Root of the sum of powers over the whole image."""
    order, axes = op.attribute("p", 2), tuple(range(2, builder.rank(op.input(0))))
    powers = builder.call(torch.pow, builder.call(torch.abs, op.input(0)), order)
    total = builder.call(torch.sum, powers, axes, keepdim=True)
    return builder.call(power_sum_root, total, order)


def _convert_global_average_pool(builder: GraphBuilder, op: Op) -> Any:
    """Mean over the whole image."""
    rank = builder.rank(op.input(0)) - 2
    if rank not in {1, 2, 3}:
        op.refuse(f"has {rank} axes of space, and only 1 to 3 are known")
    return builder.module(_ADAPTIVE[rank - 1](1), op.input(0))


def _convert_global_max_pool(builder: GraphBuilder, op: Op) -> Any:
    """Maximum over the whole image."""
    axes = tuple(range(2, builder.rank(op.input(0))))
    return builder.call(torch.amax, op.input(0), axes, keepdim=True)


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "AveragePool": _convert_average_pool,
        "GlobalAveragePool": _convert_global_average_pool,
        "GlobalLpPool": _convert_global_lp_pool,
        "GlobalMaxPool": _convert_global_max_pool,
        "LpPool": _convert_lp_pool,
        "MaxPool": _convert_max_pool,
    }
)
"""Operator, and what it becomes."""
