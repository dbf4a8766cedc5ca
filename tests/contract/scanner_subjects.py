"""What the scanners' contract is tried on: small benches, and for each scanner how it is made quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from calibration.scan.base import Bench, Labelled, Scanner
from calibration.scan.table import SCANNERS


@dataclass(frozen=True)
class Shape:
    """Of a bench: its classes, images, and how many of them there are."""

    classes: int
    channels: int
    side: int
    images: int
    low: float = 0.0
    high: float = 1.0


SHAPES: Mapping[str, Shape] = {
    "ten": Shape(10, 3, 8, 120),
    "two": Shape(2, 1, 8, 40),
    "fifty": Shape(50, 1, 8, 200),
    "few": Shape(4, 3, 12, 12),
    "normalised": Shape(10, 3, 8, 120, -2.0, 2.5),
}


class Net(nn.Module):
    """A small convolution and a head, some dropout that must stay off."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape.channels, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(1)
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * ((shape.side - 1) // 2) ** 2, shape.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.drop(self.features(images)))
        return scores * 4


def bench_of(name: str) -> Bench:
    """A fresh bench of that shape; labels are the model's own answers, made to hold every class."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Net(shape).eval().requires_grad_(False)

    def labelled(count: int) -> Labelled:
        spread = shape.high - shape.low
        images = torch.rand((count, shape.channels, shape.side, shape.side), generator=generator)
        return Labelled(images * spread + shape.low, torch.arange(count) % shape.classes)

    clean, held, training = (labelled(count) for count in (shape.images, shape.images, 2 * shape.images))
    ends = (torch.full((shape.channels,), end) for end in (shape.low, shape.high))
    return Bench(model, shape.classes, clean, held, *ends, training=training, digest=name)


@dataclass(frozen=True)
class Row:
    """How a scanner is made quick, and the shapes it needs more of than there is, with what it says then."""

    options: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)


_QUICK = {"steps": 4, "batch": 4}
ROWS: Mapping[str, Row] = {
    "neural_cleanse": Row(_QUICK),
    "wave_inversion": Row(_QUICK),
    "warp_inversion": Row(_QUICK),
    "perturbation_inversion": Row(_QUICK),
    "pair_scan": Row({"heats": ((4, 2, 4), (2, 2, 4)), "least_images": 2}),
    "trigger_distribution": Row(
        {
            "labels": (0, 1),
            "size": 2,
            "betas": (0.5,),
            "steps": 3,
            "batch": 4,
            "crowd": 16,
            "width": 8,
            "samples": 2,
            "judged": 20,
            "grid": 2,
            "grid_steps": 2,
            "grid_images": 2,
        }
    ),
    "activation_clustering": Row({"dimensions": 3, "restarts": 2}),
    "spectral_signatures": Row(),
}


def make(name: str) -> Scanner:
    return SCANNERS[name].make(**ROWS[name].options)


@cache
def bench(name: str) -> Bench:
    return bench_of(name)
