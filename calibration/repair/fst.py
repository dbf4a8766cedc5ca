r"""Feature-shift tuning: fresh classifier, pushed away from the old one, so that the features have to move.

A backdoored network tells triggered from clean images in its features, and the classifier reads that off.
Fine-tuning finds weights near by, where the features are as they were. So the classifier is drawn anew and
kept from turning back:

.. math:: \min_{\theta, W} \mathrm{CE} + \alpha \langle W, W_0 \rangle
          \quad \text{with} \quad \lVert W \rVert = \lVert W_0 \rVert

The norm is restored after each step; without it the second term has no lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.repair.classifier import find_classifier
from calibration.schedules import Cosine
from calibration.training import Hooks

__all__ = ["FeatureShiftTuning", "draw_anew", "restore_norm", "shifting_loss"]

LEAST_IMAGES = 20


@dataclass(frozen=True)
class FeatureShiftTuning(Repair):
    r"""Draw the classifier anew, and train all layers while it is kept away from the old one.

    Args:
        epochs: Passes over the clean images.
        batch: Images a step.
        rate: Learning rate at the start; it falls along half a cosine.
        momentum: Of gradient descent.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        alpha: Weight of the inner product of new and old classifier, which grows with the square of the
            classifier's norm: where that is large (8.4 in a WRN-16-1 of 64 features), with many classes or
            few images, a smaller one costs less accuracy.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Min et al., Towards Stable Backdoor Purification through Feature Shift Tuning, NeurIPS 2023,
        arXiv 2310.01875; alpha is that of the authors' code for CIFAR-10. They use 0.001 with 100 and 200
        classes.

    Deviations:
        Images are augmented as the supplies say. A classifier may be a convolution of one pixel too.
    """

    name: ClassVar[str] = "fst"

    epochs: int = 10
    batch: int = 128
    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    alpha: float = 0.2
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha: expected 0 or more, got {self.alpha}")
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
            augmentation=augmentation,
            precision=self.precision,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a tuned copy; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        student = copy_of(model)
        classifier = find_classifier(student, supplies.classes, self.name)
        old = classifier.weight.detach().clone()
        draw_anew(classifier, generator)

        def objective(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            return shifting_loss(network(images), targets, classifier.weight, old, self.alpha)

        hooks = Hooks(
            objective=objective,
            after_step=lambda _: restore_norm(classifier.weight, old),
            identity=f"{self.name} alpha {self.alpha} from {fingerprint([old])}",
        )
        recipe = self.recipe(supplies.augmentation)
        stage = sitting.train("shift", student, supplies.train, recipe, generator=generator, hooks=hooks)
        return RepairResult(student, (stage,), {"classifier_cosine": _cosine(classifier.weight, old)})


def shifting_loss(
    logits: Tensor, targets: Tensor, weight: Tensor, old: Tensor, alpha: float
) -> Float32[Tensor, ""]:
    """Return cross entropy and alpha times the inner product of two classifiers' weights.

    Args:
        logits: Of a batch, (n, k).
        targets: Their classes.
        weight: The classifier's, as it is.
        old: As it was.
        alpha: Weight of the second term.
    """
    return functional.cross_entropy(logits.float(), targets) + alpha * (weight * old).sum()


@torch.no_grad()
def restore_norm(weight: Tensor, old: Tensor) -> None:
    """Scale a classifier's weights, in place, to the norm that the old ones have."""
    weight.mul_(old.norm() / weight.norm())


@torch.no_grad()
def draw_anew(classifier: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Draw weights and bias uniformly within one over the root of the number of inputs.

    Args:
        classifier: Changed in place.
        generator: Draws, on its own device.
    """
    bound = 1 / math.sqrt(classifier.weight[0].numel())
    for part in classifier.parameters(recurse=False):
        drawn = torch.rand(part.shape, generator=generator, device=generator.device)
        part.copy_((2 * drawn - 1) * bound)


def _cosine(weight: Tensor, old: Tensor) -> float:
    return float(functional.cosine_similarity(weight.detach().flatten(), old.flatten(), dim=0))
