"""A network of the same architecture whose weights know nothing, for repairs that train anew."""

from __future__ import annotations

import math
import operator
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn

from calibration.repair.base import copy_of

__all__ = ["fresh_copy"]

_TURNED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TURNED)
_PRODUCTS: Final[frozenset[Any]] = frozenset({torch.matmul, torch.bmm, operator.matmul})
_FACTORS: Final[frozenset[Any]] = frozenset({torch.mul, torch.div, operator.mul, operator.truediv})
_SMALL: Final = 0.02


def fresh_copy(model: fx.GraphModule, generator: torch.Generator) -> fx.GraphModule:
    r"""Return a copy with new weights, in evaluation mode, every weight asking for gradients.

    | part | is set to |
    |---|---|
    | convolution, linear layer | He's normal distribution, variance 2 / fan-in; bias 0 |
    | norm | scale 1, shift 0; running statistics 0 and 1 |
    | other layer with weights | what its own kind starts with |
    | weight of no layer: factor of a matrix product | as a linear layer |
    | … that scales something | 1 |
    | … else: position, class token, shift | normal, deviation 0.02, as vision transformers have it |

    Args:
        model: Left as it is.
        generator: Draws the weights, on the CPU, whatever device the network is on.

    References:
        He et al., Delving Deep into Rectifiers, ICCV 2015, arXiv 1502.01852, eq. 10.
    """
    fresh = copy_of(model).eval()
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in fresh.modules():
            _reset(layer, generator)
        for name, weight in _of_no_layer(fresh):
            _reset_bare(fresh, name, weight, generator)
    return fresh


def _reset(layer: nn.Module, generator: torch.Generator) -> None:
    if isinstance(layer, _LINEAR):
        _draw(layer.weight, math.sqrt(2 / _fan_in(layer)), generator)
        if layer.bias is not None:
            layer.bias.zero_()
    elif (reset := _own_reset(layer)) is not None:
        device = next(layer.parameters(recurse=False), torch.empty(0)).device
        layer.cpu()  # layers that draw do so on the CPU, so that every device starts alike
        reset()
        layer.to(device)


def _fan_in(layer: nn.Module) -> int:
    """Return how many products one output is summed from, at stride 1 where it is a transposed one."""
    weight = cast(Tensor, layer.weight)
    if isinstance(layer, _TURNED):
        return weight[:, 0].numel() // layer.groups
    return weight[0].numel()


def _own_reset(layer: nn.Module) -> Any:
    return getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)


def _of_no_layer(model: fx.GraphModule) -> list[tuple[str, nn.Parameter]]:
    """Return the weights that a graph takes by themselves, each once."""
    names = dict.fromkeys(str(node.target) for node in model.graph.nodes if node.op == "get_attr")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [(name, parameters[name]) for name in names if name in parameters]


def _reset_bare(model: fx.GraphModule, name: str, weight: Tensor, generator: torch.Generator) -> None:
    uses = {
        user.target
        for node in model.graph.nodes
        if node.op == "get_attr" and node.target == name
        for user in node.users
    }
    if uses & _PRODUCTS and weight.dim() > 1:
        _draw(weight, math.sqrt(2 / weight.shape[-2]), generator)
    elif uses & _FACTORS:
        weight.fill_(1.0)
    else:
        _draw(weight, _SMALL, generator)


def _draw(weight: Tensor, deviation: float, generator: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
