"""``Resize`` in all its variants, as torch's interpolation where it is the same and by matrices elsewhere.

A resized axis is a weighted sum over the old one, so any variant is a matrix for each axis, made at import:
row i holds the weights of the old pixels in new pixel i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import Op
from calibration.onnx_import.slicing import numbers_of
from calibration.onnx_import.values import Constant, Size

__all__ = ["CONVERTERS", "resize_axis"]


@dataclass(frozen=True)
class _Variant:
    """Which of the many resizes a node asks for."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    antialias: bool
    exclude_outside: bool


def resize_axis(values: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Return the values with one axis resized by a matrix ``(new, old)``."""
    return torch.matmul(values.movedim(axis, -1), matrix.T).movedim(-1, axis)


def _convert_resize(builder: GraphBuilder, op: Op) -> Any:
    """Resize the axes whose length changes."""
    value, variant = op.input(0), _variant(op)
    plan = _plan(builder, op)
    if not plan:
        return value
    native = _native(builder, op, variant, plan)
    if native is not None:
        return builder.call(functional.interpolate, value, **native)
    shape = builder.static_shape(value)
    for axis, (new, scale) in plan.items():
        old = shape[axis]
        if old is None or isinstance(new, Size):
            op.refuse("resizes an axis whose length the graph leaves open; fix its height and width")
        matrix = Constant(_matrix(old, int(new), scale, variant))
        value = builder.call(resize_axis, value, matrix, axis)
    return value


def _variant(op: Op) -> _Variant:
    coordinates = op.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES:
        op.refuse(f"has coordinate_transformation_mode {coordinates!r}; known are {', '.join(_COORDINATES)}")
    if op.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        op.refuse("keeps the aspect ratio; give it both sizes")
    return _Variant(
        mode=op.attribute("mode", "nearest"),
        coordinates=coordinates,
        rounding=op.attribute("nearest_mode", "round_prefer_floor"),
        cubic=op.attribute("cubic_coeff_a", -0.75),
        antialias=bool(op.attribute("antialias", 0)),
        exclude_outside=bool(op.attribute("exclude_outside", 0)),
    )


def _plan(builder: GraphBuilder, op: Op) -> dict[int, tuple[Any, float]]:
    """Return the new length and the scale of every axis that is resized."""
    value = op.input(0)
    shape = builder.shape(value)
    axes = [axis % len(shape) for axis in op.attribute("axes", list(range(len(shape))))]
    scales = op.numbers(2)
    sizes = numbers_of(op, 3) if scales is None else [shape[axis] for axis in axes]
    plan: dict[int, tuple[Any, float]] = {}
    for place, axis in enumerate(axes):
        old, new = shape[axis], sizes[place]
        if isinstance(old, Size) or (scales is None and isinstance(new, Size)):
            if (scales is None and new != builder.fixed_batch) or (scales and scales[place] != 1.0):
                _same_or_refuse(op, old, new)
            continue
        scale = new / old if scales is None else scales[place]
        new = math.floor(old * scale) if scales is not None else new
        if scale != 1.0 or new != old:
            plan[axis] = (new, scale)
    return plan


def _same_or_refuse(op: Op, old: Any, new: Any) -> None:
    if not (isinstance(old, Size) and isinstance(new, Size) and old.samples == new.samples):
        op.refuse("resizes an axis whose length the graph leaves open; fix its height and width")


def _native(
    builder: GraphBuilder, op: Op, variant: _Variant, plan: dict[int, tuple[Any, float]]
) -> dict[str, Any] | None:
    """Return the arguments of torch's interpolation if it does the same."""
    shape = builder.static_shape(op.input(0))
    space = shape[2:]
    exact = all(new == (shape[axis] or 0) * scale for axis, (new, scale) in plan.items())
    if not exact or min(plan) < 2 or len(space) not in {1, 2} or variant.exclude_outside or variant.antialias:
        return None
    key = (variant.mode, variant.coordinates)
    if key == ("nearest", "asymmetric") and variant.rounding == "floor":
        options: dict[str, Any] = {"mode": "nearest"}
    elif variant.mode in {"linear", "cubic"} and variant.coordinates in _ALIGNED and len(space) == 2:
        if variant.mode == "cubic" and variant.cubic != -0.75:
            return None
        options = {"mode": f"bi{variant.mode}", "align_corners": _ALIGNED[variant.coordinates]}
    else:
        return None
    size = tuple(plan[axis][0] if axis in plan else shape[axis] for axis in range(2, len(shape)))
    return {"size": size, **options}


_ALIGNED: Final[Mapping[str, bool]] = MappingProxyType({"half_pixel": False, "align_corners": True})

# Where a new pixel lies on the old axis: (new index, scale, new length, old length) -> coordinate.
_COORDINATES: Final[Mapping[str, Callable[[Tensor, float, int, int], Tensor]]] = MappingProxyType(
    {
        "half_pixel": lambda x, scale, new, old: (x + 0.5) / scale - 0.5,
        "half_pixel_symmetric": lambda x, scale, new, old: (
            old / 2 * (1 - new / (old * scale)) + (x + 0.5) / scale - 0.5
        ),
        "pytorch_half_pixel": lambda x, scale, new, old: (x + 0.5) / scale - 0.5 if new > 1 else x * 0.0,
        "align_corners": lambda x, scale, new, old: x * (old - 1) / (new - 1) if new > 1 else x * 0.0,
        "asymmetric": lambda x, scale, new, old: x / scale,
    }
)

_ROUNDINGS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
        "floor": torch.floor,
        "ceil": torch.ceil,
    }
)


def _matrix(old: int, new: int, scale: float, variant: _Variant) -> Tensor:
    """Return the weights ``(new, old)`` of one axis; places in single precision, as ONNX Runtime has them."""
    index = torch.arange(new, dtype=torch.float32)
    places = _COORDINATES[variant.coordinates](index, scale, new, old).to(torch.float64)
    if variant.mode == "nearest":
        nearest = _ROUNDINGS[variant.rounding](places).clamp(0, old - 1).to(torch.int64)
        return functional.one_hot(nearest, old).to(torch.float32)
    stretch = min(scale, 1.0) if variant.antialias else 1.0
    kernel = _tent if variant.mode == "linear" else lambda x: _cubic(x, variant.cubic)
    radius = math.ceil((1 if variant.mode == "linear" else 2) / stretch)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64) + torch.floor(places).unsqueeze(1)
    weights = kernel((taps - places.unsqueeze(1)) * stretch)
    outside = (taps < 0) | (taps > old - 1)
    if variant.exclude_outside:
        weights = weights.masked_fill(outside, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    matrix = torch.zeros((new, old), dtype=torch.float64)
    return matrix.scatter_add_(1, taps.clamp(0, old - 1).to(torch.int64), weights).to(torch.float32)


def _tent(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Return Keys' cubic convolution kernel with parameter a."""
    x = distance.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType({"Resize": _convert_resize})
"""Operator, and what it becomes."""
