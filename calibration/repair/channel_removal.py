"""Takes channels out of a network for good: the weights that make them, or that read them, become zero.

Where nothing but one convolution, or one norm, makes a channel, that is where it is zeroed: from there on it
is exactly zero on every image. Where it is a sum of branches, as what a residual network with activations
after its sums ends with, to zero what makes it would take it from earlier blocks too; there the weights of
the layer that reads it become zero, and nothing that comes after knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Int64
from torch import Tensor, fx, nn

from calibration.errors import ModelError
from calibration.prediction import device_of
from calibration.repair.channels import Site, is_norm, lets_channels_pass, run_node
from calibration.shapes import node_shapes

__all__ = ["Slot", "find_slots", "zero_channels"]

_NEAR: Final = 1e-3
_NORMS_BY_CHANNEL: Final = (nn.BatchNorm2d, nn.InstanceNorm2d)
"""Norms in which one channel knows nothing of another, so that the convolution before may be zeroed too."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a parameter holds what belongs to channels.

    Attributes:
        parameter: Its name.
        axis: The axis along which channels lie.
        owner: The channel that each place along it belongs to.
        reads: Whether it reads the channels, rather than makes them.
    """

    parameter: str
    axis: int
    owner: Int64[Tensor, " d"]
    reads: bool = False


def find_slots(module: fx.GraphModule, row: Sequence[int], site: Site, method: str) -> tuple[Slot, ...]:
    """Return where a map's channels can be taken out: at what makes them, else at what reads them.

    Args:
        module: The network, in evaluation mode.
        row: Shape of one image, channels first.
        site: The map.
        method: Who asks, for the message.

    Raises:
        ModelError: If channels are mixed with others before a layer with weights has read them.
    """
    node = next(node for node in module.graph.nodes if node.name == site.node)
    shapes = node_shapes(module, row)
    slots = _makers(module, shapes, node) or _readers(module, node, site)
    if not slots:
        raise ModelError(
            f"{method} needs a last feature map whose channels come from one norm or convolution, or go to "
            f"one linear layer or convolution, got neither at {site.node!r}; choose another repair"
        )
    return slots


@torch.no_grad()
def zero_channels(module: nn.Module, slots: Iterable[Slot], channels: Tensor) -> None:
    """Set to zero, in place, all that the slots hold of channels."""
    for slot in slots:
        parameter = module.get_parameter(slot.parameter)
        places = torch.isin(slot.owner, channels.to(slot.owner)).nonzero().flatten()
        parameter.index_fill_(slot.axis, places.to(parameter.device), 0.0)


def _makers(
    module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], node: fx.Node
) -> tuple[Slot, ...]:
    """Go back through what lets channels pass to the layer that makes them; none if they are a sum."""
    while len(node.all_input_nodes) == 1:
        made = _made_by(module, node)
        (before,) = node.all_input_nodes
        if made:
            alone = isinstance(_layer(module, node), _NORMS_BY_CHANNEL) and len(before.users) == 1
            return (*made, *(_made_by(module, before, norms=False) if alone else ()))
        if len(before.users) != 1 or before not in shapes:
            return ()
        if not lets_channels_pass(module, node, shapes[before][1:]):
            return ()
        node = before
    return ()


def _made_by(module: fx.GraphModule, node: fx.Node, *, norms: bool = True) -> tuple[Slot, ...]:
    """Return the weights of a convolution or a norm by the channel they make; none of another node."""
    norm = norms and is_norm(module, node)
    layer = _layer(module, node)
    if layer is None or not (norm or isinstance(layer, nn.Conv2d)):
        return ()
    return tuple(
        Slot(f"{node.target}.{name}", 0, torch.arange(len(values)))
        for name, values in layer.named_parameters(recurse=False)
    )


def _readers(module: fx.GraphModule, node: fx.Node, site: Site) -> tuple[Slot, ...]:
    """Return the weights of the one layer that reads the channels.

    Maps in which channel c is c + 1 everywhere are sent on to it: its input tells which place is whose.
    """
    numbers = torch.arange(1.0, site.channels + 1, device=device_of(module))
    value: Tensor | None = numbers[:, None, None].expand(2, *site.shape).contiguous()
    while value is not None and len(node.users) == 1:
        (node,) = node.users
        layer = _layer(module, node)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            return _read_by(str(node.target), layer, value, site.channels)
        blank = run_node(module, node, torch.zeros_like(value))
        value = None if blank is None or blank.any() else run_node(module, node, value)
    return ()


def _read_by(name: str, layer: nn.Linear | nn.Conv2d, value: Tensor, channels: int) -> tuple[Slot, ...]:
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or value.ndim != 4:
            return ()
        value = value.flatten(2).transpose(1, 2)
    rows = value.reshape(-1, value.shape[-1])
    owner = rows[0].round()
    known = ((owner >= 1) & (owner <= channels)).all()
    if not known or (rows - owner).abs().max() > _NEAR:
        return ()
    return (Slot(f"{name}.weight", 1, owner.long().cpu() - 1, reads=True),)


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node runs, if no other node runs it too."""
    if node.op != "call_module":
        return None
    runs = [
        other for other in module.graph.nodes if other.op == "call_module" and other.target == node.target
    ]
    return module.get_submodule(str(node.target)) if len(runs) == 1 else None
