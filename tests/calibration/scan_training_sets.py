"""Benches whose features are known: the model flattens its images, and classes lie where they are put."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from calibration.scan.base import Bench, Labelled

CLASSES = 3
SHAPE = (1, 2, 4)


def flattening(classes: int = CLASSES) -> nn.Module:
    """Return a model whose features are its pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(8)[:classes])
        model[1].bias.zero_()
    return model.eval().requires_grad_(False)


def clean_set(count: int, seed: int, *, modes: bool = False) -> Labelled:
    """Return ``count`` images a class around its own corner; class 1 in two places if it has ``modes``."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), count)
    points = 3 * np.eye(8)[labels] + 0.3 * generator.normal(size=(len(labels), 8))
    if modes:
        points[(labels == 1) & (generator.random(len(labels)) < 0.5), 6] += 4
    return labelled(points, labels)


def poisoned_set(count: int, poisoned: int, seed: int, *, modes: bool = False) -> tuple[Labelled, np.ndarray]:
    """Return a clean set and ``poisoned`` images more, labelled 0, that lie by themselves; and their rows."""
    clean = clean_set(count, seed, modes=modes)
    generator = np.random.default_rng([seed, 1])
    points = np.zeros((poisoned, 8))
    points[:, 0], points[:, 5] = 2.0, 5.0
    points += 0.3 * generator.normal(size=points.shape)
    images = np.concatenate([clean.images.numpy().reshape(-1, 8), points])
    labels = np.concatenate([clean.labels.numpy(), np.zeros(poisoned, np.int64)])
    order = generator.permutation(len(labels))
    return labelled(images[order], labels[order]), np.sort(np.flatnonzero(order >= len(clean)))


def bench_of(
    training: Labelled | None,
    *,
    trusted: int = 100,
    modes: bool = False,
    model: nn.Module | None = None,
    generated: bool = False,
) -> Bench:
    """Return a bench with half of its ``trusted`` images a class to search on, and half held."""
    return Bench(
        model=flattening() if model is None else model,
        classes=CLASSES,
        clean=clean_set(trusted // 2, 100, modes=modes),
        held=clean_set(trusted // 2, 101, modes=modes),
        low=torch.tensor([-9.0]),
        high=torch.tensor([9.0]),
        training=training,
        generated=generated,
    )


def labelled(points: np.ndarray, labels: np.ndarray) -> Labelled:
    images = torch.from_numpy(points.astype(np.float32).reshape(-1, *SHAPE))
    return Labelled(images, torch.from_numpy(labels.astype(np.int64)))
