"""Finds the stages of a network: the last feature map of each resolution, for losses on attention.

Theory of operation. A *cut* of a graph is a value that all paths from image to logits go through. Walking the
nodes in order, a node is a cut if, right after it, no earlier value is still needed. Squeeze-and-excitation
gates, shortcuts and attention heads are no cuts; the output of a residual block is one. Of the cuts at a
resolution the stage is the last that joins branches (a sum or a concatenation), with the activation that
follows it if that is all that follows it; where none joins branches, it is the last cut. So a ResNet gives
what its groups give, a pre-activation network gives it before the next group's norm, and VGG gives what goes
into each pooling.

A map finer than one before it is none: it is a partition into windows that looks like a map. A transformer's
tokens are taken for a map where they are as many as the pixels of the last real map, perhaps
with class tokens before them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal

import torch
from torch import Tensor, fx, nn

from calibration.shapes import SAMPLE_BATCH, carrying, node_shapes

__all__ = ["Stage", "cuts", "features", "find_stages", "tapped"]

Layout = Literal["NCHW", "NHWC", "NTC"]

_JOINS: Final[frozenset[Any]] = frozenset(
    {torch.add, torch.cat, torch.concat, operator.add, operator.iadd, "add", "add_"}
)
_ACTIVATIONS: Final = frozenset(
    {torch.relu, torch.sigmoid, torch.tanh, nn.functional.relu, nn.functional.gelu, nn.functional.silu}
)
_ACTIVATION_LAYERS: Final = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Threshold,
)  # fmt: skip
_MOST_CLASS_TOKENS: Final = 5


@dataclass(frozen=True)
class Stage:
    """The last feature map of one resolution.

    Attributes:
        name: ``stage1``, ``stage2``, … in the order of the network.
        node: Name of the graph's node that computes it.
        channels: Its channels.
        height: Its height.
        width: Its width.
        layout: How the node's value holds it; ``NTC`` for a sequence of tokens, class tokens first.
    """

    name: str
    node: str
    channels: int
    height: int
    width: int
    layout: Layout = "NCHW"


@dataclass(frozen=True)
class _Map:
    """A value that can be read as a feature map."""

    node: fx.Node
    layout: Layout
    channels: int
    grid: tuple[int, int]


def find_stages(
    module: fx.GraphModule,
    row: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
) -> tuple[Stage, ...]:
    """Return the stages of a network, finest resolution first.

    Args:
        module: An imported or traced network.
        row: Shape of one image as the network takes it, without the batch axis.
        dtype: The images' element type.
        layout: Order of the image's axes.

    Returns:
        One stage for each resolution larger than a single pixel; none for a network without feature maps,
        such as a perceptron.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        >>> find_stages(fx.symbolic_trace(net), (3, 8, 8))[0]
        Stage(name='stage1', node='_1', channels=8, height=6, width=6, layout='NCHW')
    """
    shapes = node_shapes(module, row, dtype=dtype)
    size = (row[1], row[2]) if layout == "NCHW" else (row[0], row[1])
    maps = _maps(module, shapes, size)
    chosen = [
        _choose(module, shapes, list(group)) for _, group in groupby(maps, key=lambda found: found.grid)
    ]
    last = {found.grid: found for found in chosen}
    return tuple(
        Stage(f"stage{place}", found.node.name, found.channels, *found.grid, found.layout)
        for place, found in enumerate(last.values(), start=1)
    )


def features(module: fx.GraphModule, images: Tensor, stages: Sequence[Stage]) -> tuple[Tensor, list[Tensor]]:
    """Run a network once and return its logits and its stages' feature maps, both differentiable.

    Args:
        module: The network; it is left as it was, and there are no hooks.
        images: A batch, as the network takes it.
        stages: What to return, from :func:`find_stages` on the same network.

    Returns:
        The logits, and one map ``(n, channels, height, width)`` for each stage, in the order given.
    """
    logits, maps = tapped(module, stages)(images)
    return logits, maps


def tapped(module: fx.GraphModule, stages: Sequence[Stage], *, logits: bool = True) -> fx.GraphModule:
    """Return a network over the same layers and weights that gives the stages' feature maps as well.

    In a training loop it is made once, and is as fast as the network itself.

    Args:
        module: The network; it is left as it was. What is trained of one is trained of the other.
        stages: Whose maps to give, from :func:`find_stages` on the same network.
        logits: Whether the logits are wanted; if not, nothing after the last of the stages is computed.

    Returns:
        A module from images to the logits, or None, and a list of maps as :func:`features` returns them.
    """
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    answer = graph.graph_copy(module.graph, copied)
    places = {node.name: copied[node] for node in module.graph.nodes if node in copied}
    graph.output(
        (answer if logits else None, [_as_map(graph, places[stage.node], stage) for stage in stages])
    )
    both = fx.GraphModule(module, graph)
    both.graph.eliminate_dead_code()
    both.recompile()
    return both


def _as_map(graph: fx.Graph, value: fx.Node, stage: Stage) -> fx.Node:
    if stage.layout == "NCHW":
        return value
    if stage.layout == "NHWC":
        return graph.call_method("permute", (value, (0, 3, 1, 2)))
    pixels = (slice(None), slice(-stage.height * stage.width, None))
    turned = graph.call_method("transpose", (graph.call_function(operator.getitem, (value, pixels)), 1, 2))
    return graph.call_method("reshape", (turned, (-1, stage.channels, stage.height, stage.width)))


def cuts(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> list[fx.Node]:
    """Return the nodes that all paths go through, in order."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    carriers = carrying(module, shapes)
    cuts, horizon = [], -1
    for node, index in place.items():
        if node in carriers:
            if horizon <= index:
                cuts.append(node)
            uses = [place[user] for user in node.users if user in carriers or user.op == "output"]
            horizon = max([horizon, *uses])
    return cuts


def _maps(
    module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], size: tuple[int, int]
) -> list[_Map]:
    """Return the cuts that can be read as a feature map, from the first layer with weights on."""
    weighted: set[fx.Node] = set()
    for node in module.graph.nodes:
        if _has_weights(module, node) or any(parent in weighted for parent in node.all_input_nodes):
            weighted.add(node)
    found: list[_Map] = []
    for node in cuts(module, shapes):
        if node in weighted and shapes[node][0] == SAMPLE_BATCH:
            before = found[-1] if found else None
            seen = _read(node, shapes[node], before, size)
            finer = before is not None and seen is not None and math.prod(seen.grid) > math.prod(before.grid)
            found.extend([seen] if seen is not None and not finer else [])
    return found


def _has_weights(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return next(module.get_submodule(str(node.target)).parameters(), None) is not None
    if node.op != "get_attr":
        return False
    owner, _, name = str(node.target).rpartition(".")
    return isinstance(getattr(module.get_submodule(owner), name), nn.Parameter)


def _read(node: fx.Node, shape: tuple[int, ...], before: _Map | None, size: tuple[int, int]) -> _Map | None:
    if len(shape) == 4:
        return _read_image(node, shape, before, size)
    if len(shape) == 3 and before is not None:
        height, width = before.grid
        if 0 <= shape[1] - height * width <= _MOST_CLASS_TOKENS:
            return _Map(node, "NTC", shape[2], before.grid)
    return None


def _read_image(
    node: fx.Node, shape: tuple[int, ...], before: _Map | None, size: tuple[int, int]
) -> _Map | None:
    """Tell channels first from channels last by the image's proportions, else by what came before."""
    readings: dict[Layout, _Map] = {
        "NCHW": _Map(node, "NCHW", shape[1], (shape[2], shape[3])),
        "NHWC": _Map(node, "NHWC", shape[3], (shape[1], shape[2])),
    }
    fitting = [reading for reading in readings.values() if _fits(reading.grid, size)]
    if len(fitting) == 2:
        expected = _turned(node) or (before.layout if before is not None else "NCHW")
        fitting.sort(key=lambda reading: reading.layout != expected)
    return fitting[0] if fitting else None


def _turned(node: fx.Node) -> Layout | None:
    """Return the layout that a node turns images to, if that is what it does."""
    if node.target not in {torch.permute, "permute"}:
        return None
    order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    turns: dict[Any, Layout] = {(0, 2, 3, 1): "NHWC", (0, 3, 1, 2): "NCHW"}
    return turns.get(tuple(order))


def _fits(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid is no finer than the image, larger than a pixel, and has the image's proportions."""
    (height, width), (image_height, image_width) = grid, size
    inside = height * width > 1 and height <= image_height + 4 and width <= image_width + 4
    return inside and abs(height - width * image_height / image_width) <= 1.5


def _choose(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], cuts: list[_Map]) -> _Map:
    """Return the last cut that joins branches, or the last one."""
    joins = [cut for cut in cuts if _joins(cut.node, shapes)]
    if not joins:
        return cuts[-1]
    (last, *_), follower = joins[-1:], next(iter(joins[-1].node.users), None)
    if len(last.node.users) == 1 and follower is not None and _activates(module, follower):
        return next((cut for cut in cuts if cut.node is follower), last)
    return last


def _joins(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    branches = [parent for parent in node.all_input_nodes if parent in shapes and parent.op != "get_attr"]
    return node.target in _JOINS and len(branches) > 1


def _activates(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _ACTIVATION_LAYERS)
    return node.target in _ACTIVATIONS or node.target in {"relu", "relu_", "sigmoid", "tanh"}
