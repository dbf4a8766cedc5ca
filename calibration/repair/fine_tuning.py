"""Plain fine-tuning on clean images: what every other repair is measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from calibration.augmentation import Augmentation
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.schedules import Steps

__all__ = ["FineTuning"]

LEAST_IMAGES = 20


@dataclass(frozen=True)
class FineTuning(Repair):
    """Train all layers on clean images, at a rate high enough to move them.

    Args:
        epochs: Passes over the clean images.
        batch: Images a step.
        rate: Learning rate until ``drop_at``, a tenth of it from there on.
        drop_at: Share of the training after which the rate drops.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        cutout: Side of the square that is blanked in each image, in pixels; 0 for none.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        The baseline of Li et al., Neural Attention Distillation, ICLR 2021, arXiv 2101.05930, table 1, and
        of Xia et al., ARGD, IJCAI 2022, arXiv 2204.09975, table 1: 20 epochs at 0.1, from the third on 0.01.
    """

    name: ClassVar[str] = "fine_tuning"

    epochs: int = 20
    batch: int = 64
    rate: float = 0.1
    drop_at: float = 0.1
    weight_decay: float = 1e-4
    cutout: int = 2
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            schedule=Steps((self.drop_at,)),
            weight_decay=self.weight_decay,
            augmentation=replace(augmentation, cutout=self.cutout),
            precision=self.precision,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a fine-tuned copy; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        student, recipe = copy_of(model), self.recipe(supplies.augmentation)
        stage = sitting.train("fine-tune", student, supplies.train, recipe, generator=generator)
        return RepairResult(student, (stage,))
