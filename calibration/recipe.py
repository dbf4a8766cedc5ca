"""How a network is trained, as a frozen value: optimiser, rates, schedule, augmentation, precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from calibration.augmentation import Augmentation
from calibration.schedules import OneCycle, Schedule

__all__ = ["OptimiserName", "Precision", "Recipe"]

OptimiserName = Literal["sgd", "nesterov", "adam"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Recipe:
    """Everything about a training but the model, the data and the seed.

    Args:
        epochs: Passes over the data.
        batch: Images a step. What does not fill a batch is left out of an epoch, another part each time;
            of fewer images than a batch, all make one.
        optimiser: Stochastic gradient descent, the same with Nesterov's momentum, or Adam.
        rate: The learning rate that the schedule's factor is on.
        momentum: Of gradient descent; for Adam the first of its two averages' rates.
        second_momentum: The second of Adam's; unused by the others.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        schedule: The factor on the rate at each step.
        label_smoothing: Share of each target spread evenly over the classes.
        augmentation: What is done to images before they are seen.
        precision: ``bfloat16`` runs the network under autocast, with weights and loss in float32.
        frozen_statistics: Leave every batch norm in evaluation mode, so that its statistics stay.
        clip: Largest norm of all gradients of a step together; None bounds none.
        compiled: Compile the network first: up to a minute for the first batch, a quarter less for the rest.

    Raises:
        ValueError: If a count is not positive, a rate or share out of range, or a name unknown.
    """

    epochs: int = 12
    batch: int = 128
    optimiser: OptimiserName = "nesterov"
    rate: float = 0.1
    momentum: float = 0.9
    second_momentum: float = 0.999
    weight_decay: float = 5e-4
    schedule: Schedule = field(default_factory=OneCycle)
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: Precision = "bfloat16"
    frozen_statistics: bool = False
    clip: float | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip: expected more than 0, got {self.clip}")
        for name in ("momentum", "second_momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")
        for name, known in (("optimiser", get_args(OptimiserName)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def steps_an_epoch(self, images: int) -> int:
        """Return how many batches are made of so many images."""
        return max(images // self.batch, 1)

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as plain values, schedules by name; no ``clip`` where there is none."""
        plain = {**asdict(self), "schedule": {"name": self.schedule.name, **vars(self.schedule)}}
        return {name: value for name, value in plain.items() if (name, value) != ("clip", None)}

    def build_optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimiser for those of the parameters that want gradients."""
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        if self.optimiser == "adam":
            betas = (self.momentum, self.second_momentum)
            return torch.optim.Adam(wanted, self.rate, betas=betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            wanted,
            self.rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.optimiser == "nesterov" and self.momentum > 0,
        )
