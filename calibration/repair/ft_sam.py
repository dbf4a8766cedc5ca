r"""Fine-tuning with sharpness-aware minimisation: neurons that a backdoor made large are moved the most.

Weights of a backdoor are larger than others, and plain fine-tuning hardly moves them. Each step here takes
its gradient where the loss is highest near by, with a neighbourhood that is as wide as a weight is large:

.. math:: w \leftarrow w - \eta \nabla L(w + e), \qquad
          e = \rho \frac{w^2 \odot \nabla L(w)}{\lVert\, |w| \odot \nabla L(w) \rVert_2}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, fx, nn

from calibration.augmentation import Augmentation
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.schedules import Cosine
from calibration.training import Hooks

__all__ = ["SharpnessAwareFineTuning", "ascent"]

LEAST_IMAGES = 20

_SMALLEST: Final = 1e-12
"""Added to the norm, as in the authors' code."""


@dataclass(frozen=True)
class SharpnessAwareFineTuning(Repair):
    """Train all layers on clean images, with adaptive sharpness-aware minimisation.

    Args:
        epochs: Passes over the clean images; each costs two ordinary ones.
        batch: Images a step.
        rate: Learning rate at the start; it falls along half a cosine.
        momentum: Of gradient descent.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        rho: How far the weights are moved before the second gradient. The authors take 2 for CIFAR-10 and
            8 for GTSRB.
        label_smoothing: Share of each target spread evenly over the classes. The authors take 0.1 for
            CIFAR-10 and 0 for GTSRB.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Zhu et al., Enhancing Fine-Tuning based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023,
        arXiv 2304.11823; its perturbation is that of Kwon et al., ASAM, ICML 2021,
        arXiv 2102.11600.

    Deviations:
        20 epochs rather than 100, for a CPU; in so few, a rate of 0.1 takes more of a backdoor out than the
        authors' 0.01, which hardly moves a WRN-16-1. Their code moves its cosine on after each batch rather
        than each epoch, so that their rate swings up and down over about 20 epochs; here it falls once.
    """

    name: ClassVar[str] = "ft_sam"

    epochs: int = 20
    batch: int = 256
    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    rho: float = 2.0
    label_smoothing: float = 0.1
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho: expected a number above 0, got {self.rho}")
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            optimiser="sgd",
            rate=self.rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=Cosine(),
            label_smoothing=self.label_smoothing,
            augmentation=augmentation,
            precision=self.precision,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a tuned copy; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        student, recipe = copy_of(model), self.recipe(supplies.augmentation)
        hooks = Hooks(perturb=self._climb, identity=f"{self.name} rho {self.rho}")
        stage = sitting.train("sharpen", student, supplies.train, recipe, generator=generator, hooks=hooks)
        return RepairResult(student, (stage,))

    @torch.no_grad()
    def _climb(self, network: nn.Module) -> Callable[[], None]:
        """Move the weights to where the loss is highest near by, and return what moves them back."""
        weights = [weight for weight in network.parameters() if weight.grad is not None]
        before = [weight.detach().clone() for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight, step in zip(weights, ascent(weights, gradients, self.rho), strict=True):
            weight.add_(step)

        @torch.no_grad()
        def descend() -> None:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)

        return descend


def ascent(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """Return e of each weight: where the loss, to first order, is highest at a distance of rho.

    Args:
        weights: Of all layers; distances along each count as shares of its size.
        gradients: One for each.
        rho: The distance.
    """
    sizes = [(weight.abs() * gradient).norm() for weight, gradient in zip(weights, gradients, strict=True)]
    scale = rho / (torch.stack(sizes).norm() + _SMALLEST)
    return [weight.square() * gradient * scale for weight, gradient in zip(weights, gradients, strict=True)]
