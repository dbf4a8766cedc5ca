"""Finds the classifier of a network: the layer whose outputs are the logits, or are turned into them."""

from __future__ import annotations

from typing import Final

from torch import fx, nn

from calibration.errors import ModelError

__all__ = ["find_classifier"]

_NORMS: Final = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU,
)  # fmt: skip
"""Layers whose weights scale and shift, and which may follow a classifier."""


def find_classifier(module: fx.GraphModule, classes: int, method: str) -> nn.Linear | nn.Conv2d:
    """Return the last layer that mixes values: linear, or a convolution of one pixel.

    Args:
        module: The network.
        classes: Numbers that the layer must give.
        method: Who asks, for the message.

    Raises:
        ModelError: If the last such layer is of another kind, or gives other than ``classes`` numbers.

    Examples:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> find_classifier(fx.symbolic_trace(net), 3, "fst")
        Linear(in_features=8, out_features=3, bias=True)
    """
    last = _last_mixing(module)
    if isinstance(last, nn.Linear) and last.out_features == classes:
        return last
    if isinstance(last, nn.Conv2d) and _is_pointwise(last) and last.out_channels == classes:
        return last
    raise ModelError(
        f"{method} needs a last linear layer, or convolution of one pixel, that gives {classes} numbers, "
        f"got {'none' if last is None else last} as the last layer; choose a repair that needs none"
    )


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1


def _last_mixing(module: fx.GraphModule) -> nn.Module | None:
    """Return the last layer that runs and has weights, other than a norm."""
    layers = [
        module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"
    ]
    mixing = [
        layer
        for layer in layers
        if not isinstance(layer, _NORMS) and next(layer.parameters(), None) is not None
    ]
    return mixing[-1] if mixing else None
