"""A distribution of small patches: a network that makes a patch of noise, and where patches are pasted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

from calibration.attacks.tensors import load_arrays

__all__ = [
    "CHUNKS",
    "Generator",
    "PatchDistribution",
    "Place",
    "Where",
    "diversity",
    "in_range",
    "paste",
    "places_of",
    "scatter",
]

Place = tuple[int, int]
"""Row and column of a patch's upper left pixel."""

Where = Literal["anywhere", "corners"] | Place
"""All places a patch fits in, the four corners, or one place."""

Patches = Float32[Tensor, "m c s s"]

CHUNKS: Final = 4
"""Parts that the noise is cut into, one for each layer."""

_SLOPE: Final = 0.2


class Generator(nn.Module):
    """Makes patches with values in [0, 1] of noise: four linear layers, each with its share of the noise.

    Args:
        channels: Of a patch.
        size: Height and width of a patch.
        chunk: Noise numbers a layer gets.
        width: Units of a hidden layer.
    """

    def __init__(self, channels: int, size: int, *, chunk: int = 16, width: int = 512) -> None:
        super().__init__()
        self.shape = channels, size, size
        self.chunk = chunk
        inputs = [chunk] + [width + chunk] * (CHUNKS - 2)
        self.layers = nn.ModuleList(nn.Linear(numbers, width) for numbers in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(CHUNKS - 1))
        self.last = nn.Linear(width + chunk, channels * size * size)

    def forward(self, noise: Float32[Tensor, "m z"]) -> Patches:
        """Return a patch for each row of noise, ``CHUNKS`` times ``chunk`` numbers in [0, 1)."""
        parts = torch.split(noise, self.chunk, dim=1)
        features = parts[0]
        for layer, norm, part in zip(self.layers, self.norms, parts[1:], strict=True):
            features = torch.cat([functional.leaky_relu(norm(layer(features)), _SLOPE), part], dim=1)
        patches: Patches = torch.sigmoid(self.last(features)).view(-1, *self.shape)
        return patches

    def noise(self, count: int, generator: torch.Generator) -> Float32[Tensor, "m z"]:
        """Draw ``count`` rows of noise, on the CPU."""
        return torch.rand((count, CHUNKS * self.chunk), generator=generator)


@dataclass(frozen=True, eq=False)
class PatchDistribution:
    """Patches that lead a model to one class, to draw from: to look at, or to train a model to ignore.

    Attributes:
        target: The class.
        betas: The target probability that each generator was content with.
        members: Weights and buffers of a generator for each of ``betas``.
        channels: Of a patch.
        size: Height and width of a patch.
        chunk: Noise numbers a layer gets.
        width: Units of a generator's hidden layer.
        noise: Standard deviation of what is added to a patch, as a share of the value range.
        where: Where patches belong.
        low: Smallest value of each channel as the model takes it.
        high: Largest value of each channel.

    Raises:
        ValueError: If there is not one member for each of ``betas``, or none at all.
    """

    target: int
    betas: tuple[float, ...]
    members: tuple[Mapping[str, np.ndarray], ...]
    channels: int
    size: int
    chunk: int
    width: int
    noise: float
    where: Where
    low: Float32[np.ndarray, " c"]
    high: Float32[np.ndarray, " c"]

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.betas):
            raise ValueError(
                f"members: expected one for each of {len(self.betas)} betas, got {len(self.members)}"
            )

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Patches:
        """Draw patches within ``low`` and ``high``, from the generators in turn."""
        parts = torch.arange(count) % len(self.members)
        patches = torch.empty(count, self.channels, self.size, self.size)
        for member, net in enumerate(self._generators):
            rows = parts == member
            patches[rows] = net(net.noise(int(rows.sum()), generator))
        patches = patches + self.noise * torch.randn(patches.shape, generator=generator)
        return in_range(patches, torch.from_numpy(self.low), torch.from_numpy(self.high))

    def stamp(self, images: Float32[Tensor, "n c h w"], generator: torch.Generator) -> Tensor:
        """Return copies of the images, each with a patch of its own at a place of its own."""
        patches = self.sample(len(images), generator).to(images.device)
        return scatter(images, patches, self.where, generator)

    @cached_property
    def _generators(self) -> list[Generator]:
        with torch.random.fork_rng(devices=[]):  # what they draw is overwritten
            nets = [
                Generator(self.channels, self.size, chunk=self.chunk, width=self.width) for _ in self.members
            ]
        for net, member in zip(nets, self.members, strict=True):
            load_arrays(net, member)
        return nets


def in_range(patches: Patches, low: Float32[Tensor, " c"], high: Float32[Tensor, " c"]) -> Patches:
    """Return patches with values in [0, 1], or a little out of it, as the model takes them."""
    span = (high - low)[:, None, None]
    return low[:, None, None] + patches.clamp(0, 1) * span


def paste(images: Float32[Tensor, "n c h w"], patches: Patches, place: Place) -> Float32[Tensor, "n c h w"]:
    """Return copies of the images with a patch on each, or one patch on all; gradients flow to the patches.

    Examples:
        >>> paste(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1), (1, 0)).tolist()
        [[[[0.0, 0.0], [1.0, 0.0]]]]
    """
    (top, left), size = place, patches.shape[2]
    pasted = images.clone()
    pasted[:, :, top : top + size, left : left + size] = patches
    return pasted


def scatter(
    images: Float32[Tensor, "n c h w"],
    patches: Float32[Tensor, "n c s s"],
    where: Where,
    generator: torch.Generator,
) -> Float32[Tensor, "n c h w"]:
    """Return copies of the images, each with its own patch at a place drawn for it."""
    size, scattered = patches.shape[2], images.clone()
    places = places_of(where, (images.shape[2], images.shape[3]), size)
    drawn = torch.randint(len(places), (len(images),), generator=generator)
    for row, place in enumerate(drawn.tolist()):
        top, left = places[place]
        scattered[row, :, top : top + size, left : left + size] = patches[row]
    return scattered


def places_of(where: Where, sides: tuple[int, int], size: int) -> list[Place]:
    """Return the places that are meant, in images of that height and width.

    Raises:
        ValueError: If a patch of that size does not fit there.

    Examples:
        >>> places_of("corners", (4, 5), 3)
        [(0, 0), (0, 2), (1, 0), (1, 2)]
    """
    bottom, right = sides[0] - size, sides[1] - size
    if bottom < 0 or right < 0:
        raise ValueError(f"size: expected a patch up to {min(sides)} pixels high and wide, got {size}")
    if where == "anywhere":
        return [(top, left) for top in range(bottom + 1) for left in range(right + 1)]
    if where == "corners":
        return sorted({(top, left) for top in (0, bottom) for left in (0, right)})
    top, left = where
    if not (0 <= top <= bottom and 0 <= left <= right):
        raise ValueError(f"place: expected a row up to {bottom} and a column up to {right}, got {where}")
    return [(top, left)]


def diversity(patches: Float32[np.ndarray, "m c s s"]) -> tuple[float, float]:
    r"""Return how far patches are apart, and in how many directions.

    Args:
        patches: At least two, with values from 0 to 1.

    Returns:
        The root mean squared difference of a number in two patches, and the participation ratio
        :math:`(\sum \lambda)^2 / \sum \lambda^2` of the eigenvalues of their covariance: 1 along a line, the
        count of numbers in a patch for independent ones; 0 if all are the same.

    Examples:
        >>> line = np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1)
        >>> diversity(line)
        (1.0, 1.0)
    """
    flat = patches.reshape(len(patches), -1).astype(np.float64)
    covariance = np.atleast_2d(np.cov(flat, rowvar=False))
    total, squared = float(np.trace(covariance)), float((covariance**2).sum())
    apart = float(np.sqrt(2 * total / flat.shape[1]))
    return apart, total**2 / squared if squared > 0 else 0.0
