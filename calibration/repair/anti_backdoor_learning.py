"""Anti-backdoor learning: train anew on a poisoned set, find what is learned too easily, and unlearn it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, get_args

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import NO_AUGMENTATION, Augmentation
from calibration.errors import DataError, TooFewImagesError
from calibration.prediction import predict
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Labelled, Repair, RepairResult, Sitting, StageRecord, Supplies
from calibration.repair.fresh import fresh_copy
from calibration.schedules import Constant, Steps
from calibration.training import Hooks

__all__ = ["AntiBackdoorLearning", "Trap", "isolate", "losses_of", "trapped"]

Trap = Literal["sample", "batch", "flooding"]

LEAST_IMAGES: Final = 20
SUSPICIOUS: Final = 0.9


@dataclass(frozen=True)
class AntiBackdoorLearning(Repair):
    r"""Train a fresh network on the poisoned set in three stages; the clean images are not looked at.

    1. *isolate*: keep the loss from falling below γ, and take the images whose loss is lowest all the same.

       .. math:: L_{sample} = \frac{1}{n} \sum_i sign(l_i - \gamma) \, l_i, \qquad
                 L_{batch} = sign(\bar l - \gamma) \, \bar l, \qquad
                 L_{flooding} = |\bar l - \gamma| + \gamma

    2. *relearn*: go on with cross entropy on all other images.
    3. *unlearn*: raise the loss of the isolated images, none above ``bound`` times :math:`\log k`.

    Args:
        trap: What keeps the loss up: local gradient ascent on each image, on a batch's mean, or flooding.
        gamma: γ, in nats.
        share: Of the poisoned set, how much is isolated; at least one image.
        isolation_epochs: Passes over the whole set, without augmentation.
        training_epochs: Passes over all but the isolated images.
        unlearning_epochs: Passes over the isolated images.
        rate: Learning rate of the first two stages; in the second a tenth from two thirds on.
        unlearning_rate: Learning rate of the third.
        bound: An image whose loss is this many times :math:`\log k` is let alone: it is
            :math:`k^{-bound}` likely to be given its label. So the ascent comes to an end.
        batch: Images a step.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        cutout: Side of the square that is blanked in each image of the second stage, in pixels; 0 for none.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Li et al., Anti-Backdoor Learning: Training Clean Models on Poisoned Data, NeurIPS 2021, arXiv
        2110.11571, eq. 3 and 4, section 4.1; 20 epochs of isolation and 1 % isolated.

    Deviations:
        Equation 4 lowers the loss of the others while it raises that of the isolated; the authors' code, and
        this, do one after the other, at 60 and 20 epochs as BackdoorBench has them. The paper's loss is per
        image; the code has the batch's mean and, by default, flooding. The ascent is bounded, and batch
        norm's statistics are frozen in it, as they would become those of stamped images; the third stage is
        not augmented. Images are shuffled, and ranked in batches in evaluation mode.
    """

    name: ClassVar[str] = "anti_backdoor_learning"

    trap: Trap = "sample"
    gamma: float = 0.5
    share: float = 0.01
    isolation_epochs: int = 20
    training_epochs: int = 60
    unlearning_epochs: int = 20
    rate: float = 0.1
    unlearning_rate: float = 5e-4
    bound: float = 2.0
    batch: int = 128
    weight_decay: float = 1e-4
    cutout: int = 2
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if self.trap not in get_args(Trap):
            raise ValueError(f"trap: expected one of {', '.join(get_args(Trap))}, got {self.trap!r}")
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a share in (0, 1), got {self.share}")
        for name in ("gamma", "bound"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("isolation_epochs", "training_epochs", "unlearning_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("rate", "unlearning_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        self.recipes(Augmentation())

    def recipes(self, augmentation: Augmentation) -> tuple[Recipe, Recipe, Recipe]:
        """Return how each stage trains."""
        first = Recipe(
            epochs=self.isolation_epochs,
            batch=self.batch,
            rate=self.rate,
            schedule=Constant(),
            weight_decay=self.weight_decay,
            augmentation=NO_AUGMENTATION,
            precision=self.precision,
        )
        second = replace(
            first,
            epochs=self.training_epochs,
            schedule=Steps((2 / 3,)),
            augmentation=replace(augmentation, cutout=self.cutout),
        )
        third = replace(
            first, epochs=self.unlearning_epochs, rate=self.unlearning_rate, frozen_statistics=True
        )
        return first, second, third

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a network trained anew; see :meth:`calibration.repair.base.Repair.repair`."""
        poisoned = self._poisoned(supplies)
        network, recipes = fresh_copy(model, generator), self.recipes(supplies.augmentation)
        first = sitting.train(
            "isolate", network, poisoned, recipes[0], generator=generator, hooks=self._trapping()
        )
        started = time.perf_counter()
        losses = losses_of(network, poisoned)
        isolated = isolate(losses, self.share)
        ranked = StageRecord("rank", time.perf_counter() - started)
        suspects = poisoned.take(isolated)
        second = sitting.train("relearn", network, poisoned.take(~isolated), recipes[1], generator=generator)
        ascent = self._ascent(supplies.classes)
        third = sitting.train("unlearn", network, suspects, recipes[2], generator=generator, hooks=ascent)
        facts, notes = _described(losses, isolated, suspects.labels)
        return RepairResult(network, (first, ranked, second, third), facts, notes)

    def _poisoned(self, supplies: Supplies) -> Labelled:
        if supplies.poisoned is None:
            raise DataError(
                f"{self.name} needs the training set that may be poisoned, got none; give it, or choose a "
                f"repair that works on clean images"
            )
        if len(supplies.poisoned) < LEAST_IMAGES:
            raise TooFewImagesError(
                f"{self.name} needs {LEAST_IMAGES} images of the training set, got {len(supplies.poisoned)}; "
                f"give all of it",
                needed=LEAST_IMAGES,
                got=len(supplies.poisoned),
            )
        return supplies.poisoned

    def _trapping(self) -> Hooks:
        def objective(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            losses = functional.cross_entropy(network(images).float(), targets, reduction="none")
            return trapped(losses, self.trap, self.gamma)

        return Hooks(objective=objective, identity=f"trap {self.trap}, gamma {self.gamma}")

    def _ascent(self, classes: int) -> Hooks:
        bound = self.bound * math.log(classes)

        def objective(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            losses = functional.cross_entropy(network(images).float(), targets, reduction="none")
            return -losses.clamp(max=bound).mean()

        return Hooks(objective=objective, identity=f"ascent up to {bound}")


def trapped(losses: Float[Tensor, " n"], trap: Trap, gamma: float) -> Float[Tensor, ""]:
    """Return what is minimised so that losses stay about γ.

    Examples:
        >>> [round(trapped(torch.tensor([0.1, 0.9]), kind, 0.75).item(), 3) for kind in get_args(Trap)]
        [0.4, -0.5, 1.0]
    """
    if trap == "sample":
        return (torch.sign(losses.detach() - gamma) * losses).mean()
    mean = losses.mean()
    if trap == "batch":
        return torch.sign(mean.detach() - gamma) * mean
    return (mean - gamma).abs() + gamma


def losses_of(network: nn.Module, labelled: Labelled) -> Float32[Tensor, " n"]:
    """Return the cross entropy of each image."""
    return functional.cross_entropy(predict(network, labelled.images), labelled.labels, reduction="none")


def isolate(losses: Float32[Tensor, " n"], share: float) -> Tensor:
    """Return a mask of the images whose loss is lowest; earlier ones first where losses are alike."""
    count = max(round(share * len(losses)), 1)
    mask = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    mask[torch.argsort(losses, stable=True)[:count]] = True
    return mask


def _described(
    losses: Float32[Tensor, " n"], isolated: Tensor, labels: Int64[Tensor, " m"]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return what a reader can tell from the isolated images, without knowing which are poisoned."""
    label = int(labels.bincount().argmax())
    alike = float((labels == label).float().mean())
    facts = {
        "isolated": float(len(labels)),
        "isolated_loss": float(losses[isolated].mean()),
        "other_loss": float(losses[~isolated].mean()),
        "isolated_label": float(label),
        "isolated_label_share": alike,
    }
    if alike >= SUSPICIOUS:
        return facts, (
            f"{alike:.0%} of the isolated images are labelled {label}: an attack's target, or a class "
            f"that is learned early, as in a clean set",
        )
    return facts, (
        f"the isolated images have many labels, none more often than {alike:.0%}: an attack on all labels, "
        f"or none was isolated",
    )
