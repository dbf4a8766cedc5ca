"""What ``Slice`` selects, as Python slices."""

from __future__ import annotations

from typing import Any

from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Constant, Number, Size, Sizes, as_array

__all__ = ["numbers_of", "slices_of"]

_ENDLESS = 2**31 - 1
"""Exporters write this, or more, for «to the end»."""


def numbers_of(op: Op, index: int) -> list[Number]:
    """Return an input as a list of numbers, some of which may be known at run time only."""
    value = op.input(index)
    if not isinstance(value, (Constant, Sizes)):
        op.refuse(f"takes its input {index} from the data, and only shapes and constants are known")
    numbers: list[Number] = as_array(value).ravel().tolist()
    return numbers


def slices_of(op: Op, shape: list[Any]) -> tuple[slice, ...]:
    """Return one slice an axis; bounds mean what they mean in Python."""
    if "starts" in op.attributes:
        starts, ends = op.attributes["starts"], op.attributes["ends"]
        axes, steps = op.attributes.get("axes"), None
    else:
        starts, ends = numbers_of(op, 1), numbers_of(op, 2)
        axes, steps = op.numbers(3), op.numbers(4)
    axes = [axis % len(shape) for axis in (axes or range(len(starts)))]
    slices = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        backward = step < 0
        last = None if _beyond(end, _ENDLESS) or (backward and _beyond(end, -_ENDLESS)) else _near(end)
        slices[axis] = slice(_near(start), last, step)
    return tuple(slices)


def _beyond(number: Number, limit: int) -> bool:
    """Whether a bound is so far out on the limit's side that it means «to the end»."""
    return not isinstance(number, Size) and abs(number) >= _ENDLESS and (number > 0) == (limit > 0)


def _near(number: Number) -> Any:
    """Return a bound no further out than an axis can be long."""
    return number if isinstance(number, Size) else int(max(-_ENDLESS, min(_ENDLESS, number)))
