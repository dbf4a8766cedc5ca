"""ONNX operators that torch has no function of its own for, each as one differentiable function.

The imported graph calls them at run time. Images of any batch size go through, on any device; numbers that
depend on the batch stay Python numbers, so the graph can be exported again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "cast",
    "depth_to_space",
    "divide_whole",
    "expand",
    "gather",
    "gather_elements",
    "gather_nd",
    "hard_sigmoid",
    "lp_normalize",
    "mean_variance_normalize",
    "new_full",
    "new_range",
    "one_hot",
    "pad_axis",
    "power_sum_root",
    "reduce_l1",
    "reduce_l2",
    "reduce_log_sum",
    "reduce_product",
    "reduce_sum_square",
    "running_sum",
    "scatter_elements",
    "scatter_nd",
    "shrink",
    "softmax_flattened",
    "space_to_depth",
    "stack_sizes",
    "sum_windows",
]

Number = Any
"""A number of Python's, or one of torch's symbols for it while the module is exported."""


def stack_sizes(source: Tensor, items: Sequence[Number], shape: Sequence[int]) -> Tensor:
    """Return numbers, some of them known only now, as a tensor on the device of ``source``."""
    whole = not any(isinstance(item, (float, torch.SymFloat)) for item in items)
    dtype = torch.int64 if whole else torch.float32
    parts = [torch.scalar_tensor(item, dtype=dtype, device=source.device) for item in items]
    return torch.stack(parts).reshape(tuple(shape))


def new_full(source: Tensor, sizes: Sequence[Number], value: int | float, dtype: torch.dtype) -> Tensor:
    """Return a tensor of one value on the device of ``source``."""
    return torch.full(tuple(sizes), value, dtype=dtype, device=source.device)


def new_range(source: Tensor, start: Number, limit: Number, step: Number, dtype: torch.dtype) -> Tensor:
    """Return the numbers from ``start`` up to, and without, ``limit`` on the device of ``source``."""
    return torch.arange(start, limit, step, dtype=dtype, device=source.device)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values as another type."""
    return values.to(dtype)


def divide_whole(left: Tensor, right: Tensor | int) -> Tensor:
    """Divide whole numbers, rounding towards zero."""
    return torch.div(left, right, rounding_mode="trunc")


def expand(values: Tensor, sizes: Sequence[Number]) -> Tensor:
    """Repeat the values along axes of length 1; -1 leaves an axis as it is."""
    return values.expand(tuple(sizes))


def hard_sigmoid(values: Tensor, slope: float, offset: float) -> Tensor:
    """Return ``slope * x + offset`` held to [0, 1]."""
    return (values * slope + offset).clamp(0.0, 1.0)


def shrink(values: Tensor, bias: float, width: float) -> Tensor:
    """Pull values towards zero by ``bias``; those within ``width`` of it become zero."""
    middle = torch.zeros_like(values)
    return torch.where(values < -width, values + bias, torch.where(values > width, values - bias, middle))


def softmax_flattened(values: Tensor, axis: int, *, log: bool) -> Tensor:
    """Take the softmax over all axes from ``axis`` on together, as opsets before 13 do."""
    flat = values.flatten(axis % values.dim())
    result = functional.log_softmax(flat, dim=-1) if log else functional.softmax(flat, dim=-1)
    return result.reshape(values.shape)


def lp_normalize(values: Tensor, order: int, axis: int) -> Tensor:
    """Divide by the norm along an axis; zeros stay zeros."""
    return functional.normalize(values, p=float(order), dim=axis, eps=1e-12)


def mean_variance_normalize(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Subtract the mean over the axes and divide by the standard deviation plus 1e-9."""
    centred = values - values.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


def gather(values: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take slices along an axis; a negative index counts from the end."""
    size = values.shape[axis]
    positive = torch.where(indices < 0, indices + size, indices)
    taken = torch.index_select(values, axis, positive.reshape(-1))
    return taken.reshape(values.shape[:axis] + indices.shape + values.shape[axis + 1 :])


def gather_nd(values: Tensor, indices: Tensor, batch_axes: int) -> Tensor:
    """Take the slices that tuples of indices name; the first ``batch_axes`` axes are walked together."""
    depth, lead = indices.shape[-1], values.shape[:batch_axes]
    count = 1
    for size in lead:
        count *= size
    named = values.reshape((count, *values.shape[batch_axes:]))
    tuples = indices.reshape((count, -1, depth))
    rows = torch.arange(count, device=values.device).reshape(-1, 1).expand(count, tuples.shape[1])
    taken = named[(rows, *tuples.unbind(-1))]
    return taken.reshape(indices.shape[:-1] + values.shape[batch_axes + depth :])


def scatter_elements(values: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """Write each update at its index along an axis, or combine it with what is there."""
    positive = torch.where(indices < 0, indices + values.shape[axis], indices)
    if reduction == "none":
        return values.scatter(axis, positive, updates)
    return values.scatter_reduce(axis, positive, updates, _REDUCTIONS[reduction])


def scatter_nd(values: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """Write each slice of the updates where its tuple of indices says, or combine it with what is there."""
    depth = indices.shape[-1]
    outer, inner = values.shape[:depth], values.shape[depth:]
    flat = torch.zeros_like(indices[..., 0])
    for position, size in enumerate(outer):
        index = indices[..., position]
        flat = flat * size + torch.where(index < 0, index + size, index)
    table = values.reshape((outer.numel(), -1))
    rows = updates.reshape((-1, table.shape[1]))
    where = flat.reshape(-1, 1).expand(-1, table.shape[1])
    if reduction == "none":
        written = table.scatter(0, where, rows)
    else:
        written = table.scatter_reduce(0, where, rows, _REDUCTIONS[reduction])
    return written.reshape((*outer, *inner))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def one_hot(indices: Tensor, depth: int, off_on: Tensor, axis: int) -> Tensor:
    """Return ``on`` at each index along a new axis and ``off`` elsewhere; indices outside give ``off``."""
    whole = indices.to(torch.int64)
    positive = torch.where(whole < 0, whole + depth, whole).unsqueeze(-1)
    hot = positive == torch.arange(depth, device=indices.device)
    return torch.where(hot, off_on[1], off_on[0]).movedim(-1, axis)


def pad_axis(values: Tensor, axis: int, before: Number, after: Number, mode: str) -> Tensor:
    """Lengthen an axis by what is there: its ``edge``, its mirror image (``reflect``), itself (``wrap``)."""
    size = values.shape[axis]
    places = torch.arange(-before, size + after, device=values.device)
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "reflect":
        places = ((places + size - 1) % max(2 * size - 2, 1) - (size - 1)).abs()
    else:
        places = places % size
    return torch.index_select(values, axis, places)


def depth_to_space(values: Tensor, block: int) -> Tensor:
    """Move blocks of channels into space, depth first (``DCR``)."""
    n, c, h, w = values.shape
    split = values.reshape(n, block, block, c // block**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def space_to_depth(values: Tensor, block: int) -> Tensor:
    """Move blocks of space into channels, depth first."""
    n, c, h, w = values.shape
    split = values.reshape(n, c, h // block, block, w // block, block)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def sum_windows(
    values: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the sum of every window, channel by channel."""
    n, c = values.shape[:2]
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    ones = torch.ones((1, 1, *kernel), dtype=values.dtype, device=values.device)
    alone = values.reshape((n * c, 1, *values.shape[2:]))
    summed = convolve(alone, ones, stride=tuple(stride), dilation=tuple(dilation))
    return summed.reshape((n, c, *summed.shape[2:]))


def power_sum_root(total: Tensor, order: int) -> Tensor:
    """Return the root of a sum of powers; where the sum is 0 its slope is 0, not infinite."""
    return torch.where(total > 0, total.clamp(min=1e-30) ** (1.0 / order), torch.zeros_like(total))


def running_sum(values: Tensor, axis: int, *, exclusive: bool, reverse: bool) -> Tensor:
    """Return the sum of all elements up to each; from the end, or without the element, if asked."""
    turned = values.flip(axis) if reverse else values
    total = turned.cumsum(axis).to(values.dtype)
    total = total - turned if exclusive else total
    return total.flip(axis) if reverse else total


def reduce_l1(values: Tensor, axes: Sequence[int], *, keepdim: bool) -> Tensor:
    """Return the sum of magnitudes."""
    return values.abs().sum(tuple(axes), keepdim=keepdim)


def reduce_sum_square(values: Tensor, axes: Sequence[int], *, keepdim: bool) -> Tensor:
    """Return the sum of squares."""
    return values.square().sum(tuple(axes), keepdim=keepdim)


def reduce_l2(values: Tensor, axes: Sequence[int], *, keepdim: bool) -> Tensor:
    """Return the length."""
    return power_sum_root(reduce_sum_square(values, axes, keepdim=keepdim), 2)


def reduce_log_sum(values: Tensor, axes: Sequence[int], *, keepdim: bool) -> Tensor:
    """Return the logarithm of the sum."""
    return values.sum(tuple(axes), keepdim=keepdim).log()


def reduce_product(values: Tensor, axes: Sequence[int], *, keepdim: bool) -> Tensor:
    """Return the product, over one axis after another."""
    for axis in sorted((axis % values.dim() for axis in axes), reverse=True):
        values = values.prod(axis, keepdim=keepdim)
    return values


def gather_elements(values: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take one element for each index, along an axis; a negative index counts from the end."""
    return torch.gather(values, axis, torch.where(indices < 0, indices + values.shape[axis], indices))
