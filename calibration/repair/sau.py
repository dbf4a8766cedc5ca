"""Shared adversarial unlearning: examples that mislead the old and the new network alike are unlearned.

What misleads both networks to the same label is where a trigger is likely to be, for a repaired network would
go wrong on triggered images as the old one does. For each batch a perturbation of each image is found that
misleads both and lets them agree; then the new network is trained to say something else there than
the old one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.schedules import Constant
from calibration.training import Hooks

__all__ = ["SharedAdversarialUnlearning", "divergence", "misleading_loss", "unlearning_loss"]

LEAST_IMAGES = 20

_TINY: Final = 1e-8
_FLOOR: Final = 1e-6
_MOST: Final = 0.999
"""A sample that is shared with less than the rest of this is left alone."""


@dataclass(frozen=True)
class SharedAdversarialUnlearning(Repair):
    r"""Unlearn, batch by batch, adversarial examples that old and new network share.

    Args:
        epochs: Passes over the clean images; each costs about ten ordinary ones.
        batch: Images a step.
        rate: Of Adam.
        bound: Largest change of a value by the perturbation, as a share of the images' range.
        search_steps: Steps towards a shared example, from the largest change upwards.
        search_rate: Length of each, as a share of the range.
        adversarial: Weight of misleading either network, while searching.
        sharing: Weight of the Jensen-Shannon divergence of the two networks' answers, while searching.
        clean: Weight of cross entropy on the clean images.
        unlearning: Weight of unlearning what is shared.
        precision: What the networks compute in.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Wei et al., Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial
        Examples, NeurIPS 2023, arXiv 2307.10562, algorithm 1. Weights, bound and steps are those of its
        experiments; what exactly is minimised follows the authors' code.

    Deviations:
        10 epochs rather than 100, for a CPU. Perturbed images may leave the range, as in the authors' code.
    """

    name: ClassVar[str] = "sau"

    epochs: int = 10
    batch: int = 256
    rate: float = 1e-4
    bound: float = 0.2
    search_steps: int = 5
    search_rate: float = 0.2
    adversarial: float = 0.01
    sharing: float = 1.0
    clean: float = 1.0
    unlearning: float = 1.0
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("bound", "search_rate", "adversarial", "sharing", "clean", "unlearning"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.search_steps < 0:
            raise ValueError(f"search_steps: expected 0 or more, got {self.search_steps}")
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            optimiser="adam",
            rate=self.rate,
            weight_decay=0.0,
            schedule=Constant(),
            augmentation=augmentation,
            precision=self.precision,
            frozen_statistics=True,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a copy without it; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        student, old = copy_of(model), copy_of(model).requires_grad_(False).eval()
        old.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        spread = (supplies.high - supplies.low)[:, None, None]

        def objective(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            network.eval()
            perturbed = self.shared_examples(network, old, images, targets, spread.to(images))
            logits, shared = network(torch.cat([images, perturbed])).float().split(len(images))
            with torch.no_grad():
                before, misled = old(images).argmax(1), old(perturbed).argmax(1)
            rows = (misled != targets) & (misled != before)
            loss = unlearning_loss(shared, misled, rows)
            return self.clean * functional.cross_entropy(logits, targets) + self.unlearning * loss

        identity = f"{self} {supplies.low.tolist()} {supplies.high.tolist()} "
        hooks = Hooks(objective=objective, identity=identity + fingerprint(old.state_dict().values()))
        recipe = self.recipe(supplies.augmentation)
        stage = sitting.train("unlearn", student, supplies.train, recipe, generator=generator, hooks=hooks)
        return RepairResult(student, (replace(stage, images=2 * stage.images),))  # clean and perturbed

    def shared_examples(
        self, network: nn.Module, old: nn.Module, images: Tensor, targets: Tensor, spread: Tensor
    ) -> Tensor:
        """Return perturbed images on which both networks go wrong, and in the same way where possible.

        Args:
            network: As it is; in evaluation mode.
            old: As it was.
            images: Clean ones.
            targets: Their classes.
            spread: The range of each channel, (c, 1, 1).
        """
        with torch.no_grad():
            usual, usual_old = network(images).argmax(1), old(images).argmax(1)
        perturbation = torch.full_like(images, self.bound)
        for _ in range(self.search_steps):
            perturbation.requires_grad_()
            logits = network(images + spread * perturbation).float()
            logits_old = old(images + spread * perturbation).float()
            taken, taken_old = logits.argmax(1), logits_old.argmax(1)
            away, away_old = taken != usual, taken_old != usual_old
            shared = away & away_old & (taken == taken_old)
            if shared.all():
                break
            misled = misleading_loss(logits, targets, ~away) + misleading_loss(logits_old, targets, ~away_old)
            apart = divergence(logits, logits_old)[~shared].sum() / len(images)
            loss = self.adversarial * misled / 2 + self.sharing * apart
            (gradient,) = torch.autograd.grad(loss, perturbation)
            perturbation = perturbation.detach() - self.search_rate * gradient.sign()
            perturbation = perturbation.clamp(-self.bound, self.bound)
        return images + spread * perturbation.detach()


def misleading_loss(logits: Tensor, targets: Tensor, rows: Bool[Tensor, " n"]) -> Float32[Tensor, ""]:
    """Return less cross entropy, summed over some rows and divided by the number of all."""
    each = functional.cross_entropy(logits, targets, reduction="none")
    return -each[rows].sum() / len(logits)


def divergence(first: Tensor, second: Tensor) -> Float[Tensor, " n"]:
    """Return the Jensen-Shannon divergence, in nats, of the probabilities that each row's logits mean."""
    p, q = first.softmax(1).clamp(min=_TINY), second.softmax(1).clamp(min=_TINY)
    middle = ((p + q) / 2).log()
    return ((p * (p.log() - middle) + q * (q.log() - middle)) / 2).sum(1)


def unlearning_loss(logits: Tensor, misled: Tensor, rows: Bool[Tensor, " n"]) -> Float32[Tensor, ""]:
    """Return less the logarithm of all probability but that of the old network's wrong answer.

    Args:
        logits: Of the perturbed images, by the network that unlearns.
        misled: What the old one takes them for.
        rows: Where that is wrong; the sum over these is divided by the number of all.
    """
    probability = logits.softmax(1)
    wrong = probability.gather(1, misled[:, None])[:, 0]
    others = probability.scatter(1, misled[:, None], 0.0).sum(1)
    each = (_FLOOR + others.clamp(max=_MOST)).log() + (1 + _FLOOR - wrong.clamp(min=1 - _MOST)).log()
    return -each[rows].sum() / 2 / len(logits)
