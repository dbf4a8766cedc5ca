"""Generative distribution modelling: the network unlearns not one trigger but all that a generator makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.errors import DataError
from calibration.hooks import Finish, Hooks
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.scan.patch_generator import PatchDistribution, paste, places_of
from calibration.schedules import Constant

__all__ = ["Counted", "GenerativeModelling", "each_alone", "put_on"]

LEAST_IMAGES = 20


@dataclass(frozen=True)
class GenerativeModelling(Repair):
    """Fine-tune on clean images, a few of which carry a trigger from a learned distribution.

    An image gets a patch of its own with a probability of ``share``, after it was augmented, and keeps its
    label; all patches of a batch that lead to one label lie in one place, drawn for the batch from those
    where the distribution has them. The generators of a distribution take turns, an epoch each. Of several
    distributions each image draws one.

    Args:
        epochs: Passes over the clean images.
        share: Probability that an image carries a patch.
        rate: Learning rate throughout.
        batch: Images a step.
        momentum: Of gradient descent.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        frozen_statistics: Leave the statistics of batch norms as they are.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Qiao, Yang and Li, Defending Neural Backdoors via Generative Distribution Modeling, NeurIPS 2019,
        arXiv 1910.04749, sections 3 and 4; share, rate and epochs as in the authors' code.

    Deviations:
        Patches with their noise are clipped to the value range. The paper pastes anywhere in the image;
        where a distribution has one place or the corners, patches go there.
    """

    name: ClassVar[str] = "gdm"

    epochs: int = 10
    share: float = 0.01
    rate: float = 1e-3
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    frozen_statistics: bool = False
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a probability above 0, got {self.share}")
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
        """Return a copy that unlearned the patches; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        learned = self._distributions(supplies)
        counted, recipe = Counted(copy_of(model)), self.recipe(supplies.augmentation)
        hooks = Hooks(
            finish=put_on(learned, self.share, counted, recipe.steps_an_epoch(len(supplies.train))),
            after_step=lambda _: counted.count(),
            identity=f"{self.name} share {self.share} of {_fingerprint(learned)}",
        )
        stage = sitting.train("unlearn", counted, supplies.train, recipe, generator=generator, hooks=hooks)
        generators = sum(len(distribution.members) for distribution in learned)
        facts = {"distributions": float(len(learned)), "generators": float(generators), "share": self.share}
        return RepairResult(counted.network, (stage,), facts)

    def _distributions(self, supplies: Supplies) -> list[PatchDistribution]:
        learned = [distribution for _, distribution in sorted(supplies.distributions.items())]
        if not learned:
            raise DataError(
                f"{self.name} needs a distribution of patches that lead to the target label, got none; let a "
                f"scan learn one"
            )
        channels, *sides = supplies.shape
        for distribution in learned:
            if distribution.channels != channels:
                raise DataError(
                    f"{self.name} needs a distribution of patches with {channels} channels as the images "
                    f"have, got {distribution.channels}; learn it on this model"
                )
            try:
                places_of(distribution.where, (sides[0], sides[1]), distribution.size)
            except ValueError as error:
                raise DataError(
                    f"{self.name} needs a distribution of patches that fit; {error}; learn it on this model"
                ) from error
        return learned


class Counted(nn.Module):
    """A network that knows how many steps it has been trained for, so that its checkpoint knows it too."""

    steps: Tensor

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # on the CPU: read at each step

    def forward(self, images: Tensor) -> Any:
        """Return the network's logits."""
        return self.network(images)

    def count(self) -> None:
        """Note that a step was taken."""
        self.steps += 1


def put_on(learned: Sequence[PatchDistribution], share: float, counted: Counted, steps: int) -> Finish:
    """Return what pastes patches on a batch's images, each with a probability of ``share``.

    Args:
        learned: The distributions.
        share: The probability.
        counted: Says how many steps were taken.
        steps: Steps an epoch, after which the next generators have their turn.
    """
    members = [each_alone(distribution) for distribution in learned]

    def finish(images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        epoch = int(counted.steps) // steps
        chosen = (torch.rand(len(rows), generator=generator) < share).nonzero()[:, 0]
        whose, pasted = torch.randint(len(members), (len(chosen),), generator=generator), images.clone()
        for number, alone in enumerate(members):
            where = chosen[whose == number]
            if len(where):
                one = alone[epoch % len(alone)]
                there = where.to(images.device)
                pasted[there] = _in_one_place(images[there], one, generator)
        return pasted

    return finish


def each_alone(distribution: PatchDistribution) -> list[PatchDistribution]:
    """Return each generator of a distribution as one of its own."""
    pairs = zip(distribution.betas, distribution.members, strict=True)
    return [replace(distribution, betas=(beta,), members=(member,)) for beta, member in pairs]


def _in_one_place(images: Tensor, distribution: PatchDistribution, generator: torch.Generator) -> Tensor:
    places = places_of(distribution.where, (images.shape[2], images.shape[3]), distribution.size)
    place = places[int(torch.randint(len(places), (), generator=generator))]
    return paste(images, distribution.sample(len(images), generator).to(images.device), place)


def _fingerprint(learned: Sequence[PatchDistribution]) -> str:
    told = [f"{one.target} {one.size} {one.noise} {one.where} {one.betas}" for one in learned]
    arrays = [array for one in learned for member in one.members for array in member.values()]
    ranges = [bound for one in learned for bound in (one.low, one.high)]
    return f"{'; '.join(told)} {fingerprint(torch.as_tensor(array) for array in [*arrays, *ranges])}"
