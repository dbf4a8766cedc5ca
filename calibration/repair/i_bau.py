r"""Implicit backdoor adversarial unlearning: a universal perturbation is unlearned, its own answer counted.

.. math:: \min_\theta L(d^*(\theta), \theta) \quad \text{with} \quad
          d^*(\theta) = \arg\min_d G(d, \theta), \quad
          G = -\mathrm{CE}(f_\theta(x + d), y) + c \lVert d \rVert^2

The gradient of the outer loss counts how d would answer to a change of the weights. With one step of descent
:math:`\Phi(d, \theta) = d - \eta \nabla_d G`, whose fixed point is d*,

.. math:: \frac{dL}{d\theta} = \nabla_\theta L + (\partial_\theta \Phi)^\top v, \qquad
          v = (\partial_d \Phi)^\top v + \nabla_d L

and v is approached by a few steps of its own equation from 0. So the hypergradient is the plain gradient, d
and v held fixed, of :math:`L + \langle v, \Phi \rangle`, which is what the training loop is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import NO_AUGMENTATION
from calibration.hooks import Epoch
from calibration.labelled import Labelled
from calibration.prediction import device_of
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.schedules import Constant
from calibration.training import Hooks

__all__ = ["ImplicitUnlearning", "misleading_loss", "with_hypergradient"]

LEAST_IMAGES = 20

Loss = Callable[[Tensor], Tensor]
"""Of a perturbation; what else it depends on asks for gradients."""


@dataclass(frozen=True)
class ImplicitUnlearning(Repair):
    """Find one perturbation that misleads on all images, and train against it by its hypergradient.

    Args:
        rounds: Times that a perturbation is found and unlearned, each a pass over the images.
        batch: Images a step.
        rate: Of Adam, on the weights.
        search_rate: Of gradient descent on the perturbation, in units of the images' range.
        penalty: c, on the perturbation's squared norm.
        share: Part of each batch that is perturbed while unlearning; one image at least.
        terms: Steps towards v. At 1 it is the outer loss's gradient by d alone.
        response: Step size of the descent that d is taken for the fixed point of.
        precision: What the network computes in.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Zeng et al., Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022,
        arXiv 2110.03735; the fixed-point method is that of Grazzi et al., On the Iteration Complexity of
        Hypergradient Computation, ICML 2020, arXiv 2006.16218, as in the authors' code.

    Deviations:
        Settings are those of the authors' code, whose perturbation is bound by the penalty rather than
        the paper's ball. The batch of the inner problem is drawn at random rather than the first of
        the set, and batches are drawn anew each round.
    """

    name: ClassVar[str] = "i_bau"

    rounds: int = 5
    batch: int = 100
    rate: float = 1e-3
    search_rate: float = 10.0
    penalty: float = 1e-3
    share: float = 0.01
    terms: int = 5
    response: float = 0.1
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("rounds", "terms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("search_rate", "penalty", "response"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {self.share}")
        self.recipe()

    def recipe(self) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.rounds,
            batch=self.batch,
            optimiser="adam",
            rate=self.rate,
            weight_decay=0.0,
            schedule=Constant(),
            augmentation=NO_AUGMENTATION,
            precision=self.precision,
            frozen_statistics=True,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a copy without it; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        student = copy_of(model)
        order = torch.randperm(len(supplies.train), generator=generator)
        data = supplies.train.take(order).to(device_of(student))
        rounds = _Rounds(self, data, (supplies.high - supplies.low).to(device_of(student))[:, None, None])
        hooks = Hooks(
            objective=rounds.objective,
            after_epoch=rounds.forget,
            identity=f"{self} {supplies.low.tolist()} {supplies.high.tolist()}",
        )
        stage = sitting.train("unlearn", student, data, self.recipe(), generator=generator, hooks=hooks)
        return RepairResult(student, (replace(stage, images=2 * stage.images),))  # outer and inner problem


class _Rounds:
    """The bilevel objective; its perturbation is found by the weights that a round begins with."""

    def __init__(self, options: ImplicitUnlearning, data: Labelled, spread: Float32[Tensor, "c 1 1"]) -> None:
        self.options, self.data, self.spread = options, data, spread
        self.found: Tensor | None = None

    def forget(self, epoch: Epoch, network: nn.Module) -> None:
        """Let the next round find its own perturbation."""
        del epoch, network
        self.found = None

    def objective(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return what has the outer loss as its value and the hypergradient as its gradient."""
        network.eval()
        if self.found is None:
            self.found = self.search(network)
        most = max(1, int(self.options.share * len(images)))  # a batch is in random order as it is
        first = self.data.take(torch.arange(min(self.options.batch, len(self.data))))

        def outer(perturbation: Tensor) -> Tensor:
            perturbed = torch.cat([images[:most] + self.spread * perturbation, images[most:]])
            return functional.cross_entropy(network(perturbed).float(), targets)

        def inner(perturbation: Tensor) -> Tensor:
            logits = network(first.images + self.spread * perturbation)
            return misleading_loss(logits, first.labels, perturbation, self.options.penalty)

        return with_hypergradient(outer, inner, self.found, self.options.terms, self.options.response)

    def search(self, network: nn.Module) -> Float32[Tensor, "c h w"]:
        """Return a perturbation that leads images away from what the network takes them for."""
        options = self.options
        perturbation = torch.zeros_like(self.data.images[0], requires_grad=True)
        for images in torch.split(self.data.images, options.batch):
            with torch.no_grad():
                taken = network(images).argmax(1)
            logits = network(images + self.spread * perturbation)
            loss = misleading_loss(logits, taken, perturbation, options.penalty)
            (gradient,) = torch.autograd.grad(loss, perturbation)
            perturbation = (perturbation - options.search_rate * gradient).detach().requires_grad_()
        return perturbation.detach()


def misleading_loss(logits: Tensor, labels: Tensor, perturbation: Tensor, penalty: float) -> Tensor:
    """Return G: less cross entropy, and a penalty on the perturbation's squared norm."""
    return penalty * perturbation.square().sum() - functional.cross_entropy(logits.float(), labels)


def with_hypergradient(outer: Loss, inner: Loss, found: Tensor, terms: int, response: float) -> Tensor:
    """Return the outer loss, such that its gradient by the weights counts the perturbation's answer to them.

    Args:
        outer: What is minimised by the weights.
        inner: What the perturbation minimises.
        found: The perturbation.
        terms: Steps towards v.
        response: Step size of the descent.
    """
    perturbation = found.detach().requires_grad_()
    loss = outer(perturbation)
    (direct,) = torch.autograd.grad(loss, perturbation, retain_graph=True)
    (downhill,) = torch.autograd.grad(inner(perturbation), perturbation, create_graph=True)
    mapped = perturbation - response * downhill
    answer = direct  # v after the first step from 0
    for _ in range(terms - 1):
        (carried,) = torch.autograd.grad(mapped, perturbation, answer, retain_graph=True)
        answer = carried + direct
    coupling = (answer * mapped).sum()
    return loss + coupling - coupling.detach()
