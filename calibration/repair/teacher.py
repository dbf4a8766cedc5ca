"""A teacher for a student to be drawn to: the network as it was given, fine-tuned on the clean images."""

from __future__ import annotations

import torch
from torch import fx

from calibration.recipe import Recipe
from calibration.repair.base import Sitting, StageRecord, Supplies, copy_of
from calibration.schedules import Steps

__all__ = ["LEAST_IMAGES", "fine_tuned_teacher", "steps_at"]

LEAST_IMAGES = 20


def fine_tuned_teacher(
    model: fx.GraphModule, supplies: Supplies, recipe: Recipe, *, generator: torch.Generator, sitting: Sitting
) -> tuple[fx.GraphModule, StageRecord]:
    """Return a copy fine-tuned on the clean images, in evaluation mode, that wants no gradients.

    Args:
        model: The network to be repaired; it is left as it was.
        supplies: Its clean images are learned from.
        recipe: How.
        generator: Draws everything.
        sitting: Keeps it as the stage ``teacher``.
    """
    teacher = copy_of(model)
    stage = sitting.train("teacher", teacher, supplies.train, recipe, generator=generator)
    return teacher.requires_grad_(False), stage


def steps_at(option: str, shares: tuple[float, ...]) -> Steps:
    """Return the schedule that drops the rate to a tenth at each share of a training.

    Raises:
        ValueError: If the shares do not rise within (0, 1); it names the option that they are.
    """
    try:
        return Steps(shares)
    except ValueError:
        raise ValueError(f"{option}: expected rising shares within (0, 1), got {shares}") from None
