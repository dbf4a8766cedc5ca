"""Finds the channels that the last convolutional stage of a network gives after its activation.

Theory of operation. After the last convolution that is not the classifier, the first map that all paths go
through is followed through the norm and the activation after it, if that is all that follows, so that a
pre-activation network is read after its last norm, as others are. The network falls into a part before that
map and a part after it, and what pruning does to the answers is found from the maps of the images, computed
once.

A layer lets a channel pass if it gives the same whether channels are zeroed before it or after it; that is
tried on the layer itself, on maps drawn at random, and goes for pooling, dropout and most activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from calibration.errors import ModelError
from calibration.prediction import device_of
from calibration.shapes import node_shapes
from calibration.stages import cuts, find_stages

__all__ = ["Site", "find_site", "is_norm", "lets_channels_pass", "parts", "run_node"]

_NORMS: Final = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
_MIXING: Final = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Site:
    """A feature map whose channels can be told apart.

    Attributes:
        node: Name of the graph's node that computes it.
        shape: Its channels, height and width.
    """

    node: str
    shape: tuple[int, int, int]

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.shape[0]

    def means(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, " c"]:
        """Return the mean absolute value of each channel, over images and space."""
        return maps.abs().mean((0, 2, 3))


def find_site(module: fx.GraphModule, row: Sequence[int], method: str) -> Site:
    """Return the map that the last convolutional stage ends with, after the norm and activation on it.

    Args:
        module: The network, in evaluation mode.
        row: Shape of one image, channels first.
        method: Who asks, for the message.

    Raises:
        ModelError: If there is no such map.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        >>> find_site(fx.symbolic_trace(net).eval(), (3, 8, 8), "pruning")
        Site(node='_1', shape=(8, 6, 6))
    """
    stages = find_stages(module, row)
    shapes = node_shapes(module, row)
    if not stages or stages[-1].layout == "NTC" or _works_on_tokens(module, shapes):
        raise ModelError(
            f"{method} needs a convolutional stage, got a network of {len(stages)} stages"
            f"{' that works on tokens' if stages else ''}; choose a repair that needs none"
        )
    node = _after_last_convolution(module, shapes)
    if node is None:
        raise ModelError(
            f"{method} needs a convolution before the classifier whose maps all paths go through, got none; "
            f"choose a repair that needs none"
        )
    follower = _follower(module, shapes, node)
    while follower is not None:
        node, follower = follower, _follower(module, shapes, follower)
    first, second, third = shapes[node][1:]
    return Site(node.name, (first, second, third))


def _works_on_tokens(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    """Tell whether a linear layer mixes the channels of each pixel."""
    layers = [node for node in module.graph.nodes if node.op == "call_module" and node in shapes]
    return any(
        isinstance(module.get_submodule(str(node.target)), nn.Linear) and len(shapes[node]) > 2
        for node in layers
    )


def _after_last_convolution(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> fx.Node | None:
    """Return the first map after the last convolution, the classifier aside, that all paths go through."""
    layers = {
        node: module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module"
    }
    mixing = [node for node, layer in layers.items() if isinstance(layer, _MIXING)]
    convolutions = [node for node in mixing[:-1] if isinstance(layers[node], nn.Conv2d)]
    if not convolutions:
        return None
    place = {node: at for at, node in enumerate(module.graph.nodes)}
    later = [node for node in cuts(module, shapes) if place[node] >= place[convolutions[-1]]]
    return later[0] if later and len(shapes[later[0]]) == 4 else None


def parts(module: fx.GraphModule, site: Site) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return what comes before a map and what comes after it, over the same layers and weights.

    Returns:
        A module from images to maps, and one from images and maps to logits, which takes of the images
        no more than their number.
    """
    before, after = (_copied(module) for _ in range(2))
    before_graph, places, _ = before
    before_graph.output(places[site.node])
    after_graph, places, answer = after
    entry = next(node for node in after_graph.nodes if node.op == "placeholder")
    with after_graph.inserting_after(entry):
        maps = after_graph.placeholder("maps")
    after_graph.output(answer)
    places[site.node].replace_all_uses_with(maps)
    return _as_module(module, before_graph), _as_module(module, after_graph)


def lets_channels_pass(module: fx.GraphModule, node: fx.Node, shape: Sequence[int]) -> bool:
    """Tell whether zeroing channels before a node is the same as zeroing them after it.

    Args:
        module: The network, in evaluation mode.
        node: Computed from one value alone.
        shape: Of that value: channels, height and width.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((2, *shape), generator=generator).to(device_of(module))
    gone = torch.arange(0, values.shape[1], 2, device=values.device)
    for scale in (1.0, 10.0):
        after = run_node(module, node, values * scale)
        before = run_node(module, node, (values * scale).index_fill(1, gone, 0.0))
        if after is None or before is None or after.ndim != values.ndim:
            return False
        if after.shape[1] != values.shape[1]:
            return False
        if not torch.equal(before, after.index_fill(1, gone, 0.0)):
            return False
    return True


@torch.no_grad()
def run_node(module: fx.GraphModule, node: fx.Node, value: Tensor) -> Tensor | None:
    """Return what a node gives of a value, or None if it takes more than one, or fails on that one."""
    if len(node.all_input_nodes) != 1 or node.op not in {"call_module", "call_function", "call_method"}:
        return None
    args = fx.node.map_arg(node.args, lambda _: value)
    named = fx.node.map_arg(node.kwargs, lambda _: value)
    interpreter = fx.Interpreter(module)
    try:
        given: Any = getattr(interpreter, node.op)(node.target, args, named)
    except (RuntimeError, ValueError, IndexError):
        return None
    return given if isinstance(given, Tensor) else None


def _follower(
    module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], node: fx.Node
) -> fx.Node | None:
    """Return the norm or activation that is all that follows a node."""
    users = list(node.users)
    if len(users) != 1 or shapes.get(users[0]) != shapes[node] or users[0].op == "output":
        return None
    (user,) = users
    if is_norm(module, user):
        return user
    return user if lets_channels_pass(module, user, shapes[node][1:]) else None


def is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a norm with a scale and a shift for each channel."""
    if node.op != "call_module":
        return False
    layer = module.get_submodule(str(node.target))
    return isinstance(layer, _NORMS) and isinstance(layer.weight, nn.Parameter)


def _copied(module: fx.GraphModule) -> tuple[fx.Graph, dict[str, fx.Node], Any]:
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    answer = graph.graph_copy(module.graph, copied)
    return graph, {node.name: copied[node] for node in module.graph.nodes if node in copied}, answer


def _as_module(module: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    made = fx.GraphModule(module, graph)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made.eval()
