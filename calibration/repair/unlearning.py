"""Neural Cleanse's repair: the network sees the trigger on images that keep their true labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from calibration.augmentation import Augmentation
from calibration.errors import DataError
from calibration.hooks import Finish, Hooks
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.repair.stamping import Stamp, fingerprint_of, hand_out, stamps_of
from calibration.schedules import Constant

__all__ = ["Unlearning", "put_on"]

LEAST_IMAGES = 20


@dataclass(frozen=True)
class Unlearning(Repair):
    """Fine-tune for an epoch on clean images, a fifth of which carry the trigger under their true labels.

    Each step puts a trigger on that share of its images, drawn anew, after they were augmented. Several
    triggers are dealt to them in turn. With a ``share`` of 0 it fine-tunes on the clean images alone, the
    paper's control, and takes no trigger.

    Args:
        epochs: Passes over the clean images.
        share: Of the images of a step, those that carry a trigger; at least one unless it is 0.
        rate: Learning rate throughout.
        batch: Images a step.
        momentum: Of gradient descent.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        frozen_statistics: Leave the statistics of batch norms as they are.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Wang et al., Neural Cleanse, IEEE S&P 2019, section VI.C and table V: one epoch on 10 % of the
        training data, with the reversed trigger, and also the original one, on 20 % of it.

    Deviations:
        The paper names neither optimiser nor rate. Ours are those of a public re-implementation for
        CIFAR-10: gradient descent at 0.01, batches of 128. Images are augmented before they are stamped.
    """

    name: ClassVar[str] = "unlearning"

    epochs: int = 1
    share: float = 0.2
    rate: float = 0.01
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    frozen_statistics: bool = False
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: expected a share in [0, 1], got {self.share}")
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            optimiser="sgd",
            rate=self.rate,
            momentum=self.momentum,
            schedule=Constant(),
            weight_decay=self.weight_decay,
            augmentation=augmentation,
            frozen_statistics=self.frozen_statistics,
            precision=self.precision,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a copy that unlearned the trigger; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        student, recipe = copy_of(model), self.recipe(supplies.augmentation)
        stage = sitting.train(
            "unlearn", student, supplies.train, recipe, generator=generator, hooks=self._hooks(supplies)
        )
        used = len(supplies.triggers) if self.share else 0
        return RepairResult(student, (stage,), {"triggers": float(used), "share": self.share})

    def _hooks(self, supplies: Supplies) -> Hooks:
        if not self.share:
            return Hooks()
        triggers, images = supplies.triggers, supplies.train.images
        if not triggers:
            raise DataError(
                f"{self.name} needs a trigger that leads to the target label, got none; scan the model for "
                f"one, or set share to 0 to fine-tune on clean images alone"
            )
        told = f"{self.name} share {self.share} of {fingerprint_of(triggers, images)}"
        return Hooks(finish=put_on(stamps_of(triggers, images), self.share), identity=told)


def put_on(stamps: Sequence[Stamp], share: float) -> Finish:
    """Return what puts a trigger on a share of each batch, rounded, on one image at least."""

    def finish(images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        count = max(1, round(share * len(rows)))
        chosen = torch.randperm(len(rows), generator=generator)[:count]
        first = int(torch.randint(len(stamps), (), generator=generator))
        return hand_out(images, chosen, stamps, first)

    return finish
