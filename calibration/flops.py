"""What a network costs: two for each weight, or pair of numbers, multiplied and added."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional

from calibration.onnx_import.ops_attention import attend

__all__ = ["PRODUCTS", "layer_flops"]

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Shapes = dict[fx.Node, tuple[int, ...]]


def layer_flops(layer: nn.Module, node: fx.Node, shapes: Shapes) -> int:
    """Return the cost of one call of a layer; only convolutions and linear layers are counted.

    Args:
        layer: The layer.
        node: The call.
        shapes: Shapes of everything in the graph, batch included.
    """
    given = math.prod(shapes[node])
    if isinstance(layer, _CONVOLUTIONS):
        return 2 * given * math.prod(layer.weight.shape[1:])
    if isinstance(layer, _TRANSPOSED):
        taken = math.prod(shapes[node.all_input_nodes[0]])
        return 2 * taken * math.prod(layer.weight.shape[1:])
    if isinstance(layer, nn.Linear):
        return 2 * given * layer.in_features
    return 0


def _matmul(node: fx.Node, shapes: Shapes) -> int:
    return 2 * math.prod(shapes[node]) * _operands(node, shapes)[0][-1]


def _weighted(node: fx.Node, shapes: Shapes) -> int:
    """Return the cost of a convolution or linear layer whose weights are computed."""
    return 2 * math.prod(shapes[node]) * math.prod(_operands(node, shapes)[1][1:])


def _attention(node: fx.Node, shapes: Shapes) -> int:
    query, key, value = _operands(node, shapes)[:3]
    pairs = math.prod(query[:-1]) * key[-2]
    return 2 * pairs * (query[-1] + value[-1])


def _einsum(node: fx.Node, shapes: Shapes) -> int:
    """Return the cost of summing over all axes at once; axes behind dots are those of the result."""
    terms = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, _operands(node, shapes), strict=True):
        before, _, after = term.partition("...")
        named = zip(before + after, (*shape[: len(before)], *shape[len(shape) - len(after) :]), strict=True)
        lengths.update(named)
        hidden = shape[len(before) : len(shape) - len(after)]
        lengths.update({f"...{len(hidden) - place}": size for place, size in enumerate(hidden)})
    return 2 * math.prod(lengths.values()) if len(terms) > 1 else 0


def _operands(node: fx.Node, shapes: Shapes) -> list[tuple[int, ...]]:
    """Return the shapes of all tensors a call takes, in order; one that it takes twice is there twice."""
    taken: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), taken.append)
    return [shapes[part] for part in taken if part in shapes]


_COSTS: Final[tuple[tuple[Callable[[fx.Node, Shapes], int], tuple[Any, ...]], ...]] = (
    (_matmul, (torch.matmul, torch.bmm, torch.mm, operator.matmul, "matmul", "bmm", "mm")),
    (_weighted, (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)),
    (_attention, (attend, functional.scaled_dot_product_attention)),
    (_einsum, (torch.einsum,)),
)

PRODUCTS: Final[Mapping[Any, Callable[[fx.Node, Shapes], int]]] = MappingProxyType(
    {target: cost for cost, targets in _COSTS for target in targets}
)
"""Functions that multiply and add, as the graph calls them, and what a call costs."""
