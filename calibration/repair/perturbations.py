r"""Perturbations of many kinds behind one form: part of the image is kept, and something is added.

.. math:: T_p(u) = \mathrm{clip}(k_p \odot u + a_p, 0, 1)

for an image u brought to 0 … 1: faint noise and slow waves keep the image whole, a patch keeps what lies
around it, a reflection dims it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

__all__ = ["Perturbations", "Range", "joined", "reflected_in_glass", "sine_waves"]


@dataclass(frozen=True, eq=False)
class Range:
    """The values that a network may be sent, for going to 0 … 1 and back.

    Attributes:
        low: Smallest value of each channel.
        high: Largest value of each channel.
    """

    low: Float32[Tensor, " c"]
    high: Float32[Tensor, " c"]

    def unit(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return images with 0 for the smallest value and 1 for the largest."""
        return (images - self._low(images)) / self._span(images)

    def full(self, units: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return such images as the network takes them."""
        return units * self._span(units) + self._low(units)

    def _low(self, images: Tensor) -> Tensor:
        return self.low.to(images)[:, None, None]

    def _span(self, images: Tensor) -> Tensor:
        return (self.high - self.low).to(images)[:, None, None]


@dataclass(frozen=True, eq=False)
class Perturbations:
    """A set of perturbations.

    Attributes:
        family: What kind they are.
        keep: k, how much of each pixel stays.
        add: a, what is added.
        labels: The label that each leads to.
        rates: Share of the images of other labels that it leads there.
    """

    family: str
    keep: Float32[Tensor, "p 1 h w"]
    add: Float32[Tensor, "p c h w"]
    labels: Int64[Tensor, " p"]
    rates: Float32[Tensor, " p"]

    def __len__(self) -> int:
        return len(self.labels)

    def put(self, units: Float[Tensor, "n c h w"], which: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Return images, from 0 to 1, each with one of the perturbations on."""
        which = which.to(self.add.device)  # a few are moved to the images, not all
        keep, add = self.keep[which].to(units.device), self.add[which].to(units.device)
        return (units * keep + add).clamp(0, 1)

    def take(self, rows: Tensor) -> Perturbations:
        """Return some of them, by number or by a mask."""
        return replace(
            self,
            keep=self.keep[rows],
            add=self.add[rows],
            labels=self.labels[rows],
            rates=self.rates[rows],
        )


def joined(parts: Sequence[Perturbations], family: str) -> Perturbations:
    """Return several sets as one."""
    keep, add, labels, rates = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("keep", "add", "labels", "rates")
    )
    return Perturbations(family, keep, add, labels, rates)


def sine_waves(shape: tuple[int, int, int], amplitude: float, most: int = 8) -> Float32[Tensor, "p c h w"]:
    """Return sine waves over the image, alike in every channel: each direction and frequency, in two phases.

    Args:
        shape: Channels, height and width.
        amplitude: Of each wave, the range of values being 1.
        most: Most periods across the image along either axis; fewer where pixels are too few to show them.
    """
    channels, height, width = shape
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    found = [
        torch.sin(2 * math.pi * (across * columns + down * rows + phase))
        for down, across in _frequencies(min(most, height // 4), min(most, width // 4))
        for phase in (0.0, 0.25)
    ]
    return amplitude * torch.stack(found)[:, None].expand(-1, channels, -1, -1)


def reflected_in_glass(units: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """Return images a little out of focus, as a pane of glass reflects what stands before it."""
    return functional.avg_pool2d(functional.pad(units, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _frequencies(down: int, across: int) -> Iterator[tuple[int, int]]:
    """Yield each pair of frequencies once, a wave and its mirror image in the origin being the same."""
    for row in range(down + 1):
        for column in range(-across, across + 1):
            if row > 0 or column > 0:
                yield row, column
