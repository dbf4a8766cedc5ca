"""The geometry of windows that slide over an image: kernel, stride, dilation and padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Value

__all__ = ["Windows", "pad", "read_windows"]


@dataclass(frozen=True)
class Windows:
    """How windows lie on an image; one entry an axis of space.

    Attributes:
        begin: Padding before the image.
        end: Padding after it.
        ceil: Whether a last window may hang over the padding's end.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    ceil: bool

    @property
    def symmetric(self) -> bool:
        """Whether as much is padded before the image as after it."""
        return self.begin == self.end

    @property
    def padded(self) -> bool:
        """Whether anything is padded."""
        return any(self.begin) or any(self.end)

    def reach(self, axis: int) -> int:
        """Return how many pixels a window covers, gaps included."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def count(self, axis: int, size: int) -> int:
        """Return how many windows fit; none that would start beyond the image and its left padding."""
        total = size + self.begin[axis] + self.end[axis]
        steps = (total - self.reach(axis)) / self.stride[axis]
        number = (math.ceil(steps) if self.ceil else math.floor(steps)) + 1
        if self.ceil and (number - 1) * self.stride[axis] >= size + self.begin[axis]:
            number -= 1
        return number

    def overhang(self, axis: int, size: int) -> int:
        """Return how far the last window reaches over the padding's end; negative where it stops short."""
        last = (self.count(axis, size) - 1) * self.stride[axis] + self.reach(axis)
        return last - (size + self.begin[axis] + self.end[axis])


def read_windows(builder: GraphBuilder, op: Op, kernel: tuple[int, ...]) -> Windows:
    """Return the windows of a convolution or a pooling node."""
    rank = len(kernel)
    stride = tuple(op.attribute("strides", [1] * rank))
    dilation = tuple(op.attribute("dilations", [1] * rank))
    pads = op.attribute("pads", [0] * 2 * rank)
    mode = op.attribute("auto_pad", "NOTSET")
    begin, end = tuple(pads[:rank]), tuple(pads[rank:])
    if mode.startswith("SAME"):
        begin, end = _same(builder, op, (kernel, stride, dilation), lower=mode == "SAME_LOWER")
    if mode == "VALID":
        begin = end = (0,) * rank
    return Windows(kernel, stride, dilation, begin, end, bool(op.attribute("ceil_mode", 0)))


def _same(
    builder: GraphBuilder, op: Op, shape: tuple[tuple[int, ...], ...], *, lower: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding after which as many windows fit as strides do; an odd pixel goes to one side."""
    totals = []
    sizes = builder.static_shape(op.input(0))[2:]
    for size, kernel, stride, dilation in zip(sizes, *shape, strict=True):
        reach = (kernel - 1) * dilation + 1
        if size is None and stride != 1:
            op.refuse("pads by the image's size, which the graph leaves open; fix its height and width")
        rest = (size or 1) - 1 - (((size or 1) - 1) // stride) * stride
        totals.append(max(0, reach - 1 - rest))
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return (more, less) if lower else (less, more)


def pad(
    builder: GraphBuilder, value: Value, begin: tuple[int, ...], end: tuple[int, ...], fill: float
) -> Any:
    """Pad the axes of space; negative widths cut away."""
    widths = [width for pair in zip(reversed(begin), reversed(end), strict=True) for width in pair]
    return builder.call(functional.pad, value, widths, value=fill) if any(widths) else value
