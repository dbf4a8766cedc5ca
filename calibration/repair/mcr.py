"""Mode connectivity repair: a point on a curve of accurate networks, far from the backdoored one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import Augmentation
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, StageRecord, Supplies, accuracy, copy_of
from calibration.repair.bezier import Curve
from calibration.schedules import Cosine, HoldThenFall
from calibration.training import Hooks

__all__ = ["MCR", "furthest"]

LEAST_IMAGES: Final = 20
LEAST_HELD: Final = 10
POINTS: Final = 10


@dataclass(frozen=True)
class MCR(Repair):
    r"""Fine-tune a copy, join it to the victim by a curve of low loss, and take a point of the curve.

    .. math:: \theta(t) = (1 - t)^2 A + 2 t (1 - t) M + t^2 B, \qquad
              L(M) = E_{t \sim U(0, 1)} \Big[ CE(\theta(t)) + \frac{\lambda}{2} \|\theta(t)\|^2 \Big]

    A is the victim, B the fine-tuned copy; one t is drawn for each batch. Batch-norm scales and shifts lie on
    the curve too, and the running statistics of a point are estimated anew on the clean images.

    Args:
        t: The point to take, 0 being the victim and 1 the fine-tuned copy; None takes, of eleven points, the
            one furthest from the victim that is about as accurate as the best on the images held back.
        tolerance: How much less accurate than the best that point may be.
        epochs: Passes over the clean images for the curve.
        rate: Learning rate of the curve; held for half of the training, down to a hundredth at nine tenths.
        batch: Images a step.
        weight_decay: λ, on the weights at t.
        endpoint_epochs: Passes over the clean images for the fine-tuned copy.
        endpoint_rate: Its learning rate, falling along half a cosine.
        precision: What the networks compute in while they learn.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Zhao et al., Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness, ICLR 2020,
        arXiv 2005.00060, eq. 1 and 2, section 4.2; the curve is that of Garipov et al., NeurIPS 2018, arXiv
        1802.10026, eq. 3. BackdoorBench's mcr, whose second end is the victim fine-tuned.

    Deviations:
        The paper joins two victims of unlike seeds and poison, and its points are furthest from both at the
        middle. One victim is all there is here: B is it fine-tuned, as in BackdoorBench, and the backdoor
        wanes towards t = 1. The paper's t = 0.3, which its tables and others' report, is an option, and so
        are its 100 epochs: 40 are a matter of minutes on a CPU. Statistics are estimated on the clean
        images, not on the whole training set as in the authors' code.
        A curve is no better than its far end: of a victim that is more accurate than the paper's, the points
        of highest accuracy keep the backdoor, and a wider tolerance and a harsher endpoint are called for.
    """

    name: ClassVar[str] = "mcr"

    t: float | None = None
    tolerance: float = 0.01
    epochs: int = 40
    rate: float = 0.01
    batch: int = 128
    weight_decay: float = 1e-4
    endpoint_epochs: int = 20
    endpoint_rate: float = 0.05
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if self.t is not None and not 0 <= self.t <= 1:
            raise ValueError(f"t: expected a point from 0 to 1, or None, got {self.t}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance: expected a share in [0, 1), got {self.tolerance}")
        for name in ("endpoint_epochs", "endpoint_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        self.recipe(Augmentation())
        self.endpoint_recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how the curve is trained; its weight decay is part of the objective."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            optimiser="sgd",
            rate=self.rate,
            schedule=HoldThenFall(0.5, 0.9, 0.01),
            weight_decay=0.0,
            augmentation=augmentation,
            precision=self.precision,
        )

    def endpoint_recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how the copy is fine-tuned."""
        return replace(
            self.recipe(augmentation),
            epochs=self.endpoint_epochs,
            rate=self.endpoint_rate,
            schedule=Cosine(),
            weight_decay=self.weight_decay,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a point of the curve; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES, held=LEAST_HELD if self.t is None else 0)
        endpoint, augmentation = copy_of(model), supplies.augmentation
        tuned = sitting.train(
            "endpoint", endpoint, supplies.train, self.endpoint_recipe(augmentation), generator=generator
        )
        curve = Curve(model, endpoint)
        joined = sitting.train(
            "curve",
            curve,
            supplies.train,
            self.recipe(augmentation),
            generator=generator,
            hooks=self.hooks(curve),
        )
        started = time.perf_counter()
        t, repaired, facts = self._choose(curve, supplies)
        chosen = StageRecord("choose", time.perf_counter() - started)
        return RepairResult(repaired, (tuned, joined, chosen), {"curve_t": t, **facts})

    def hooks(self, curve: Curve) -> Hooks:
        """Return what makes a training one of the curve's middle."""

        def draw(images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
            del rows
            curve.t = float(torch.rand((), generator=generator))
            return images

        return Hooks(finish=draw, objective=self.loss, identity=f"bezier, weight decay {self.weight_decay}")

    def loss(self, curve: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the curve's loss at its point t on one batch."""
        curve = cast(Curve, curve)
        weights = curve.weights(curve.t)
        cross_entropy = functional.cross_entropy(curve.answer(weights, images).float(), targets)
        if not self.weight_decay:
            return cross_entropy
        return cross_entropy + self.weight_decay / 2 * _squared_norm(weights.values())

    def _choose(self, curve: Curve, supplies: Supplies) -> tuple[float, fx.GraphModule, dict[str, float]]:
        """Return the point asked for, or the furthest one that is accurate on the images held back."""
        images = supplies.train.images
        if self.t is not None:
            return self.t, curve.point(self.t, images), {}
        rates = {
            place / POINTS: accuracy(curve.point(place / POINTS, images), supplies.held)
            for place in range(POINTS + 1)
        }
        t = furthest(rates, self.tolerance)
        return t, curve.point(t, images), {f"held_acc_at_{point:g}": rate for point, rate in rates.items()}


def furthest(rates: dict[float, float], tolerance: float) -> float:
    """Return the largest t whose accuracy is no more than the tolerance below the best."""
    return max(t for t, rate in rates.items() if rate >= max(rates.values()) - tolerance)


def _squared_norm(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum of all squared weights."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()
