"""Where others take part in a training, and what they are told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Epoch", "Finish", "Hooks", "Objective", "Perturb"]

Finish = Callable[[Tensor, Tensor, torch.Generator], Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
Perturb = Callable[[nn.Module], Callable[[], None]]


@dataclass(frozen=True)
class Epoch:
    """How one epoch went; ``rate`` is that of its last step."""

    number: int
    loss: float
    rate: float
    seconds: float


@dataclass(frozen=True)
class Hooks:
    """Where others take part in the loop.

    Args:
        finish: Gets a batch after augmentation, float32 in the data's range, the rows it was made from, and
            the generator; returns what is trained on. For triggers that must be whole.
        objective: Gets the network, images and targets, under autocast; returns the loss, a scalar. Cross
            entropy if None.
        perturb: Gets the network with its gradients, moves the weights, and returns what moves them back. The
            step is then taken by the gradients on the same batch where they were moved to, which leave the
            running statistics alone. For sharpness-aware minimisation.
        after_step: Gets the network after each step of the optimiser.
        after_epoch: Gets how an epoch went, and the network; true ends the training.
        identity: Says what the hooks do, in other words where they do something else: a checkpoint that was
            written under others is not gone on from.
    """

    finish: Finish | None = None
    objective: Objective | None = None
    perturb: Perturb | None = None
    after_step: Callable[[nn.Module], None] | None = None
    after_epoch: Callable[[Epoch, nn.Module], bool | None] | None = None
    identity: str = ""
