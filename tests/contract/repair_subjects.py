"""What the repairs' contract is tried on: small networks and supplies, and how each repair is made quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from calibration.attacks.base import Material
from calibration.attacks.table import make as make_attack
from calibration.attacks.tensors import arrays_of
from calibration.augmentation import Augmentation
from calibration.repair.base import Labelled, Repair, Supplies
from calibration.repair.table import REPAIRS
from calibration.scan.patch_generator import Generator, PatchDistribution

SIDE = 8


class Residual(nn.Module):
    """Two stages with batch norm, a shortcut each, and a head."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.last_norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        first = torch.relu(self.norm(self.stem(images)))
        first = torch.relu(first + self.inner_norm(self.inner(first)))
        second = torch.relu(self.down_norm(self.down(first)))
        second = torch.relu(second + self.last_norm(self.last(second)))
        logits: Tensor = self.head(second.mean((2, 3)))
        return logits * 4


def plain(classes: int, channels: int) -> nn.Module:
    """Two stages without any norm, and a head."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * (SIDE // 4) ** 2, classes),
    )


@dataclass(frozen=True)
class Shape:
    """Of a subject: its network, classes and images."""

    net: str = "residual"
    classes: int = 4
    channels: int = 3
    train: int = 96
    held: int = 32
    low: float = 0.0
    high: float = 1.0


SHAPES: Mapping[str, Shape] = {
    "residual": Shape(),
    "no norm": Shape(net="plain"),
    "two classes, grey": Shape(classes=2, channels=1),
    "forty-three classes": Shape(classes=43, train=172, held=43),
    "fifty images": Shape(train=50, held=12),
    "normalised": Shape(low=-2.0, high=2.5),
}


UNFIT: Mapping[str, Shape] = {"no feature map": Shape(net="perceptron")}
"""Networks that only those repairs are tried on which refuse them."""


def network_of(shape: Shape, seed: int = 7) -> fx.GraphModule:
    """A small network as a graph, in evaluation mode, that asks for gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: nn.Module | None = None
        if shape.net == "residual":
            net = Residual(shape.classes, shape.channels)
        if shape.net == "perceptron":
            net = nn.Sequential(nn.Flatten(), nn.Linear(shape.channels * SIDE**2, shape.classes))
        net = net or plain(shape.classes, shape.channels)
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.3, 0.3)
    return fx.symbolic_trace(net).eval()


def supplies_of(shape: Shape, seed: int = 3) -> Supplies:
    """Images of one brightness and stripe a class, all else noise; a trigger, patches, a poisoned set."""
    generator = torch.Generator().manual_seed(seed)
    train, held = (_images(shape, count, generator) for count in (shape.train, shape.held))
    spread = torch.full((shape.channels,), shape.high - shape.low)
    trigger = make_attack(
        "badnets",
        Material(train.images.numpy(), train.labels.numpy(), shape.classes),
        generator=np.random.default_rng(0),
        target_label=1,
    )
    stamped = train.images.clone()
    stamped[::8] = torch.from_numpy(trigger.stamp(train.images[::8].numpy()))
    labels = train.labels.clone()
    labels[::8] = 1
    return Supplies(
        train=train,
        held=held,
        classes=shape.classes,
        shape=(shape.channels, SIDE, SIDE),
        low=torch.full((shape.channels,), shape.low),
        high=torch.full((shape.channels,), shape.low) + spread,
        triggers=(trigger,),
        distributions={1: patches_of(shape)},
        poisoned=Labelled(stamped, labels),
        augmentation=Augmentation(padding=1),
    )


def patches_of(shape: Shape, seed: int = 11) -> PatchDistribution:
    """Small patches from two generators that have learned nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        members = tuple(arrays_of(Generator(shape.channels, 3, chunk=2, width=4)) for _ in range(2))
    bounds = (np.full(shape.channels, bound, np.float32) for bound in (shape.low, shape.high))
    return PatchDistribution(1, (0.5, 0.9), members, shape.channels, 3, 2, 4, 0.1, "corners", *bounds)


def _images(shape: Shape, count: int, generator: torch.Generator) -> Labelled:
    labels = torch.arange(count) % shape.classes
    noise = torch.rand((count, shape.channels, SIDE, SIDE), generator=generator) * 0.3
    noise += 0.6 * (labels / shape.classes)[:, None, None, None]
    noise[torch.arange(count), :, labels % SIDE] += 0.1
    return Labelled(shape.low + noise * (shape.high - shape.low), labels)


@dataclass(frozen=True)
class Row:
    """How one repair is tried.

    Args:
        quick: Options that make it a matter of a second.
        refuses: Shapes on which it says that it cannot work, and words of what it says.
    """

    quick: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)


ROWS: Mapping[str, Row] = {
    "fine_tuning": Row({"epochs": 2, "batch": 16, "precision": "float32", "rate": 0.02}),
    "fine_pruning": Row(
        {"epochs": 2, "batch": 16, "precision": "float32", "rate": 0.02}, {"no feature map": "needs"}
    ),
    "unlearning": Row({"epochs": 2, "batch": 16, "precision": "float32"}),
    "distillation": Row(
        {"epochs": 2, "batch": 16, "precision": "float32", "rate": 0.02, "fine_tune_epochs": 1}
    ),
    "gdm": Row({"epochs": 2, "batch": 16, "share": 0.25, "precision": "float32"}),
    "nad": Row(
        {"epochs": 2, "teacher_epochs": 1, "batch": 16, "precision": "float32", "rate": 0.02},
        {"no feature map": "needs"},
    ),
    "argd": Row(
        {"epochs": 2, "teacher_epochs": 1, "batch": 16, "precision": "float32", "rate": 0.02},
        {"no feature map": "needs"},
    ),
    "mcr": Row({"epochs": 2, "endpoint_epochs": 1, "batch": 16, "precision": "float32", "rate": 0.02}),
    "dhbe": Row(
        {
            "epochs": 2,
            "iterations": 1,
            "student_steps": 2,
            "trigger_steps": 1,
            "batch": 8,
            "pool": 16,
            "prime_steps": 3,
            "width": 4,
            "latent": 8,
            "patch": 3,
            "precision": "float32",
        }
    ),
    "anti_backdoor_learning": Row(
        {
            "isolation_epochs": 1,
            "training_epochs": 2,
            "unlearning_epochs": 1,
            "batch": 16,
            "precision": "float32",
        }
    ),
    "fst": Row({"epochs": 2, "batch": 16, "precision": "float32"}),
    "ft_sam": Row({"epochs": 2, "batch": 16, "precision": "float32"}),
    "i_bau": Row({"rounds": 2, "batch": 16, "precision": "float32"}),
    "guided_unlearning": Row(
        {"rounds": 2, "epochs": 1, "batch": 16, "search_steps": 2, "precision": "float32"}
    ),
    "sau": Row({"epochs": 2, "batch": 16, "search_steps": 2, "precision": "float32"}),
}


def quick(name: str) -> Repair:
    """A repair that takes a second."""
    return REPAIRS[name].make(**ROWS[name].quick)
