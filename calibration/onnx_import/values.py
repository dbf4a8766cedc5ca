"""What a name of an ONNX graph can stand for while the graph is imported.

Three things: a constant, known now; a node of the torch graph, known when the model runs; or a few
sizes, some known now and some a number that is read off a tensor at run time (the batch size, above all).
Sizes stay Python numbers, never tensors, so that the imported module can be exported again with a dynamic
batch axis.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

__all__ = ["Constant", "Number", "Size", "Sizes", "Value", "as_array", "from_array"]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is known at import.

    Attributes:
        trainable: Whether it is, or was computed from, a weight of the model.
        name: Name of the weight in the ONNX graph, empty if it has none worth keeping.
    """

    tensor: torch.Tensor
    trainable: bool = False
    name: str = ""


class Size:
    """One number that is known at run time only; arithmetic on it goes into the graph.

    Attributes:
        node: Where the graph computes it.
        samples: What it is at each of the two sample batch sizes.
    """

    def __init__(self, compute: Callable[..., Any], node: fx.Node, samples: tuple[Any, Any]) -> None:
        self._compute = compute
        self.node = node
        self.samples = samples

    def _combine(self, function: Callable[..., Any], *operands: Number) -> Number:
        result: Number = self._compute(function, *operands)
        return result

    def __add__(self, other: Number) -> Number:
        return self._combine(operator.add, self, other)

    def __radd__(self, other: Number) -> Number:
        return self._combine(operator.add, other, self)

    def __sub__(self, other: Number) -> Number:
        return self._combine(operator.sub, self, other)

    def __rsub__(self, other: Number) -> Number:
        return self._combine(operator.sub, other, self)

    def __mul__(self, other: Number) -> Number:
        return self._combine(operator.mul, self, other)

    def __rmul__(self, other: Number) -> Number:
        return self._combine(operator.mul, other, self)

    def __floordiv__(self, other: Number) -> Number:
        return self._combine(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Number) -> Number:
        return self._combine(operator.floordiv, other, self)

    def __truediv__(self, other: Number) -> Number:
        return self._combine(operator.truediv, self, other)

    def __rtruediv__(self, other: Number) -> Number:
        return self._combine(operator.truediv, other, self)

    def __mod__(self, other: Number) -> Number:
        return self._combine(operator.mod, self, other)

    def __neg__(self) -> Number:
        return self._combine(operator.neg, self)

    def floor(self) -> Number:
        """Return the largest whole number that is not above it."""
        return self._combine(math.floor, self)

    def ceil(self) -> Number:
        """Return the smallest whole number that is not below it."""
        return self._combine(math.ceil, self)


@dataclass(frozen=True, eq=False)
class Sizes:
    """A small array of numbers, at least one of them a :class:`Size`.

    Attributes:
        array: Object array of int, float and :class:`Size`.
    """

    array: np.ndarray


Number = int | float | Size
Value = Constant | Sizes | fx.Node


def as_array(value: Constant | Sizes) -> np.ndarray:
    """Return the numbers as an object array, as :func:`from_array` takes them."""
    if isinstance(value, Sizes):
        return value.array
    array = np.empty(tuple(value.tensor.shape), dtype=object)
    array[...] = np.array(value.tensor.tolist(), dtype=object)
    return array


def from_array(array: np.ndarray) -> Constant | Sizes:
    """Return a constant where every number is known, else the sizes."""
    items = array.ravel().tolist()
    if any(isinstance(item, Size) for item in items):
        return Sizes(array)
    floats = any(isinstance(item, float) for item in items)
    flags = bool(items) and all(isinstance(item, bool) for item in items)
    dtype = torch.float32 if floats else torch.bool if flags else torch.int64
    return Constant(torch.tensor(items, dtype=dtype).reshape(array.shape))
