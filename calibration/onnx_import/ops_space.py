"""The image's space: padding it, moving it into channels and back, sampling it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from torch.nn import functional

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import depth_to_space, pad_axis, space_to_depth
from calibration.onnx_import.op import Op
from calibration.onnx_import.slicing import numbers_of
from calibration.onnx_import.values import Constant, Size

__all__ = ["CONVERTERS"]

_GRID_MODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bilinear": "bilinear",
        "linear": "bilinear",
        "nearest": "nearest",
        "bicubic": "bicubic",
        "cubic": "bicubic",
    }
)
"""Interpolation of ``GridSample``, in the words of opset 16 and of opset 20."""


def _convert_pad(builder: GraphBuilder, op: Op) -> Any:
    """Lengthen axes by a constant, their edge, their mirror image or themselves; negative widths cut away."""
    value, mode = op.input(0), op.attribute("mode", "constant")
    rank = builder.rank(value)
    pads = op.attributes.get("pads") or numbers_of(op, 1)
    axes = [axis % rank for axis in (op.numbers(3) or range(rank))]
    widths: list[Any] = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    if mode == "constant":
        flat = [width for pair in reversed(widths) for width in pair]
        return builder.call(functional.pad, value, flat, value=_filling(op))
    if mode == "wrap" and any(not isinstance(width, Size) and width < 0 for pair in widths for width in pair):
        op.refuse("wraps around and cuts away at once, of which the standard does not say which comes first")
    for axis, (before, after) in enumerate(widths):
        if isinstance(before, Size) or isinstance(after, Size) or before or after:
            value = builder.call(pad_axis, value, axis, before, after, mode)
    return value


def _filling(op: Op) -> float:
    if not op.has_input(2):
        return float(op.attribute("value", 0.0))
    filling = op.input(2)
    if not isinstance(filling, Constant):
        op.refuse("pads with a value from the data, and only a constant one is known")
    return float(filling.tensor.item()) if filling.tensor.numel() else 0.0


def _convert_depth_to_space(builder: GraphBuilder, op: Op) -> Any:
    """Move blocks of channels into space."""
    if op.attribute("mode", "DCR") == "CRD":
        return builder.call(functional.pixel_shuffle, op.input(0), op.attributes["blocksize"])
    return builder.call(depth_to_space, op.input(0), op.attributes["blocksize"])


def _convert_space_to_depth(builder: GraphBuilder, op: Op) -> Any:
    """Move blocks of space into channels."""
    return builder.call(space_to_depth, op.input(0), op.attributes["blocksize"])


def _convert_grid_sample(builder: GraphBuilder, op: Op) -> Any:
    """Sample the image where a grid says."""
    mode = op.attribute("mode", "linear")
    return builder.call(
        functional.grid_sample,
        op.input(0),
        op.input(1),
        mode=_GRID_MODES[mode],
        padding_mode=op.attribute("padding_mode", "zeros"),
        align_corners=bool(op.attribute("align_corners", 0)),
    )


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "DepthToSpace": _convert_depth_to_space,
        "GridSample": _convert_grid_sample,
        "Pad": _convert_pad,
        "SpaceToDepth": _convert_space_to_depth,
    }
)
"""Operator, and what it becomes."""
