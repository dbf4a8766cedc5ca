"""Walks over the arguments of a call: nested lists, tuples and slices with values for leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from calibration.onnx_import.values import Constant, Size, Sizes

__all__ = ["attach", "eager", "is_weight", "known_now", "leaves"]

_MASKS_BELOW = -50.0
"""A constant with values below this is added to logits to mask some of them out; it is no weight."""


def leaves(arguments: Any) -> list[Any]:
    """Return every leaf, in order."""
    found: list[Any] = []
    map_aggregate(arguments, found.append)
    return found


def known_now(arguments: Any) -> bool:
    """Whether nothing in the arguments waits for the model to run."""
    return not any(isinstance(leaf, (fx.Node, Size, Sizes)) for leaf in leaves(arguments))


def eager(arguments: Any) -> Any:
    """Return the arguments with tensors in place of constants."""
    return map_aggregate(arguments, lambda leaf: leaf.tensor if isinstance(leaf, Constant) else leaf)


def is_weight(constant: Constant) -> bool:
    """Whether the constant should be trained: it comes from a weight, and is no number and no mask."""
    tensor = constant.tensor
    several = tensor.is_floating_point() and tensor.numel() > 1
    return constant.trainable and several and bool((tensor >= _MASKS_BELOW).all())


def attach(root: nn.Module, path: str, thing: nn.Module | nn.Parameter | torch.Tensor) -> None:
    """Put a layer, a parameter or a buffer at a dotted path, making the modules on the way to it."""
    owner, _, name = path.rpartition(".")
    holder = root
    for part in owner.split(".") if owner else ():
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    if isinstance(thing, nn.Module):
        holder.add_module(name, thing)
    elif isinstance(thing, nn.Parameter):
        holder.register_parameter(name, thing)
    else:
        holder.register_buffer(name, thing)
