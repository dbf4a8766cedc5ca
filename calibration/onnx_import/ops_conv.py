"""Convolutions, plain and transposed, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Constant, Value
from calibration.onnx_import.windows import Windows, pad, read_windows

__all__ = ["CONVERTERS"]

_LAYERS: Final[tuple[Callable[..., nn.Module], ...]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS: Final[tuple[Callable[..., Tensor], ...]] = (
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
)
_TRANSPOSED: Final[tuple[Callable[..., nn.Module], ...]] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def _convert_conv(builder: GraphBuilder, op: Op) -> Any:
    """Convolution; padding that differs between the sides is done before it."""
    rank = _rank(builder, op)
    weight, bias = op.input(1), op.optional(2)
    windows = read_windows(builder, op, builder.sample_shapes(weight)[0][2:])
    padding: tuple[int, ...] = windows.begin
    data = op.input(0)
    if not windows.symmetric or min((*windows.begin, *windows.end)) < 0:
        data = pad(builder, data, windows.begin, windows.end, 0.0)
        padding = (0,) * rank
    if not isinstance(weight, Constant) or not (bias is None or isinstance(bias, Constant)):
        return builder.call(
            _FUNCTIONS[rank - 1],
            data,
            weight,
            bias,
            windows.stride,
            padding,
            windows.dilation,
            op.attribute("group", 1),
        )
    layer = _conv(op, weight.tensor, bias, windows, padding)
    return builder.module(layer, data, weight=weight.name, bias="" if bias is None else bias.name)


def _rank(builder: GraphBuilder, op: Op) -> int:
    rank = builder.rank(op.input(1)) - 2
    if rank not in {1, 2, 3}:
        op.refuse(f"has {rank} axes of space, and only 1 to 3 are known")
    return rank


def _conv(
    op: Op, weight: Tensor, bias: Constant | None, windows: Windows, padding: tuple[int, ...]
) -> nn.Module:
    groups = op.attribute("group", 1)
    layer = _LAYERS[weight.dim() - 3](
        weight.shape[1] * groups,
        weight.shape[0],
        windows.kernel,
        stride=windows.stride,
        padding=padding,
        dilation=windows.dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return _with_weights(layer, weight, bias)


def _with_weights(layer: nn.Module, weight: Tensor, bias: Constant | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.tensor.detach().clone())
    return layer


def _convert_conv_transpose(builder: GraphBuilder, op: Op) -> Any:
    """Transposed convolution; padding that differs between the sides is cut off after it."""
    rank = _rank(builder, op)
    weight = op.constant(1)
    bias = op.constant(2) if op.has_input(2) else None
    windows = read_windows(builder, op, tuple(weight.tensor.shape[2:]))
    extra = tuple(op.attribute("output_padding", [0] * rank))
    begin, end, extra = _cut(builder, op, windows, extra)
    native = begin == end and min(begin) >= 0
    groups = op.attribute("group", 1)
    layer = _TRANSPOSED[rank - 1](
        weight.tensor.shape[0],
        weight.tensor.shape[1] * groups,
        windows.kernel,
        stride=windows.stride,
        padding=begin if native else 0,
        output_padding=extra,
        groups=groups,
        bias=bias is not None,
        dilation=windows.dilation,
        device="meta",
    )
    result: Value = builder.module(
        _with_weights(layer, weight.tensor, bias),
        op.input(0),
        weight=weight.name,
        bias="" if bias is None else bias.name,
    )
    if native:
        return result
    return pad(builder, result, tuple(-cut for cut in begin), tuple(-cut for cut in end), 0.0)


def _cut(
    builder: GraphBuilder, op: Op, windows: Windows, extra: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return what to cut off before and after, and what to add at the end.

    The first two are the padding, or what a given output shape leaves over. Where it leaves nothing over, the
    result is lengthened to the given shape; padding to SAME lets it be shorter, as ONNX Runtime does.
    """
    mode = op.attribute("auto_pad", "NOTSET")
    shape: list[int] | None = op.attributes.get("output_shape")
    if shape is None and not mode.startswith("SAME"):
        return windows.begin, windows.end, extra
    begin, end, more = [], [], []
    for axis, size in enumerate(builder.static_shape(op.input(0))[2:]):
        stride = windows.stride[axis]
        if size is None:
            op.refuse("cuts by the image's size, which the graph leaves open; fix its height and width")
        wanted = shape[-len(windows.kernel) :][axis] if shape else size * stride
        total = stride * (size - 1) + extra[axis] + windows.reach(axis) - wanted
        more.append(extra[axis] + (max(0, -total) if shape else 0))
        half, rest = max(0, total) // 2, max(0, total) - max(0, total) // 2
        begin.append(half if mode == "SAME_UPPER" else rest)
        end.append(rest if mode == "SAME_UPPER" else half)
    return tuple(begin), tuple(end), tuple(more)


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {"Conv": _convert_conv, "ConvTranspose": _convert_conv_transpose}
)
"""Operator, and what it becomes."""
