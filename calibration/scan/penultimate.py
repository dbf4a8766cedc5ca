"""What a network makes of images just before its last linear layer, computed in units.

A backdoor is learned as a feature: images that carry the trigger lie together where the last layer begins,
whatever they show. So the layer is looked for from behind: the last ``nn.Linear``, or the last convolution of
one pixel, that runs on an image and gives as many numbers as there are classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy.linalg import eigh
from torch import Tensor, nn

from calibration.prediction import device_of
from calibration.scan.base import Arrays, Bench, Executor, Labelled, Unit
from calibration.scan.executor import gather

__all__ = [
    "Part",
    "Penultimate",
    "PenultimateUnit",
    "find_head",
    "penultimate",
    "principal_directions",
]

Part = Literal["training", "clean", "held"]

BATCH: Final = 250
"""Images sent through the network at a time."""


@dataclass(frozen=True, eq=False)
class Penultimate:
    """Features of a set of images.

    Attributes:
        features: What the last linear layer takes, one row an image.
        labels: The images' classes, as the set has them.
        predictions: The classes that the model gives them.
    """

    features: Float32[np.ndarray, "n d"]
    labels: Int64[np.ndarray, " n"]
    predictions: Int64[np.ndarray, " n"]

    def take(self, rows: Bool[np.ndarray, " n"]) -> Penultimate:
        """Return some of the rows."""
        return Penultimate(self.features[rows], self.labels[rows], self.predictions[rows])

    def joined(self, other: Penultimate) -> Penultimate:
        """Return these rows and another's after them."""
        return Penultimate(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.predictions, other.predictions]),
        )


@dataclass(frozen=True)
class PenultimateUnit(Unit):
    """The features of a run of images of one set.

    Args:
        part: Which of the bench's sets.
        first: Its first row.
        end: The row after its last.
    """

    part: Part
    first: int
    end: int

    @property
    def key(self) -> str:
        """Set and rows; all else is the bench's."""
        return f"penultimate-{self.part}-{self.first}-{self.end}"

    @property
    def weight(self) -> int:
        """Images; they are sent forwards only."""
        return self.end - self.first

    def run(self, bench: Bench) -> Arrays:
        """Return ``features`` (n, d) and ``predictions`` (n,); both empty if the model has no such layer."""
        labelled = _part(bench, self.part)
        head = find_head(bench)
        if labelled is None or head is None:
            return {"features": np.empty((0, 0), np.float32), "predictions": np.empty(0, np.int64)}
        features: list[Tensor] = []
        predictions: list[Tensor] = []
        device = device_of(bench.model)
        with torch.no_grad():
            for images in torch.split(labelled.images[self.first : self.end], BATCH):
                with _taken(head) as taken:
                    logits = bench.model(images.to(device))
                features.append(_rows(taken[-1]))
                predictions.append(logits.argmax(1).cpu())
        return {"features": torch.cat(features).numpy(), "predictions": torch.cat(predictions).numpy()}


def penultimate(bench: Bench, executor: Executor, part: Part, *, chunk: int = 1000) -> Penultimate | None:
    """Return the features of one of a bench's sets; None if the model has no last linear layer.

    Args:
        bench: Model and images.
        executor: Computes them.
        part: Which set.
        chunk: Images a unit.

    Raises:
        ValueError: If the bench has no such set.
    """
    labelled = _part(bench, part)
    if labelled is None:
        raise ValueError(f"bench: expected a {part} set, got none")
    if find_head(bench) is None:
        return None
    count = len(labelled)
    units = [PenultimateUnit(part, first, min(first + chunk, count)) for first in range(0, count, chunk)]
    found = gather(executor, units)
    if not found:
        return Penultimate(np.empty((0, 0), np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
    return Penultimate(
        np.concatenate([arrays["features"] for arrays in found]),
        labelled.labels.cpu().numpy(),
        np.concatenate([arrays["predictions"] for arrays in found]),
    )


def principal_directions(
    centred: Float[np.ndarray, "n d"], count: int
) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, " k"]]:
    """Return the top right singular vectors of a matrix, strongest first, and their singular values.

    They are the eigenvectors of the d × d matrix of products, of which no more are computed than wanted. Each
    is turned so that its largest component is positive. There are ``count``, or d where that is fewer.
    """
    products = centred.astype(np.float64).T @ centred.astype(np.float64)
    width = len(products)
    values, vectors = eigh(products, subset_by_index=[max(0, width - count), width - 1])
    rows = vectors[:, ::-1].T
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])
    return rows * signs[:, None], np.sqrt(np.maximum(values[::-1], 0))


def find_head(bench: Bench) -> nn.Module | None:
    """Return the last layer that runs and can give the logits: linear, or a convolution of one pixel.

    It is found by running one image, so it does not matter how the network is wrapped, or in what order its
    layers were registered. A layer that runs more than once counts as where it runs last.
    """
    ran: list[nn.Module] = []
    with ExitStack() as stack:
        for module in bench.model.modules():
            if _could_be_head(module, bench.classes):
                handle = module.register_forward_pre_hook(partial(_note, ran))
                stack.callback(handle.remove)
        with torch.no_grad():
            bench.model(bench.clean.images[:1].to(device_of(bench.model)))
    return ran[-1] if ran else None


def _could_be_head(module: nn.Module, classes: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == classes
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == classes


def _note(ran: list[nn.Module], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    del inputs
    ran.append(module)


@contextmanager
def _taken(head: nn.Module) -> Iterator[list[Tensor]]:
    """Lend a list that gets what the layer takes, each time it runs."""
    taken: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        taken.append(inputs[0].detach().clone())

    handle = head.register_forward_pre_hook(note)
    try:
        yield taken
    finally:
        handle.remove()


def _rows(taken: Tensor) -> Float32[Tensor, "n d"]:
    """Return one row an image: maps are averaged over their pixels, and tokens over their places."""
    rows = taken.float().cpu()
    if rows.dim() == 4:
        return rows.mean((2, 3))
    return rows if rows.dim() == 2 else rows.flatten(1, -2).mean(1)


def _part(bench: Bench, part: Part) -> Labelled | None:
    parts = {"training": bench.training, "clean": bench.clean, "held": bench.held}
    return parts[part]
