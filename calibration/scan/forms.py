"""What an inverted trigger can look like: a patch, waves, something added, a warp.

A form is the parameters of many triggers at once, one a row, how they are put on images, and how large each
is. All work in shares of the value range, so that sizes mean the same whatever range a model takes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

__all__ = ["FORMS", "Addition", "Bounds", "Form", "Parts", "Patch", "Warp", "Waves"]

Parts = Sequence[Tensor]
"""A form's parameters, float32, each with a row for every trigger."""

Batches = Float32[Tensor, "t b c h w"]
Sizes = Float32[Tensor, " t"]


@dataclass(frozen=True, eq=False)
class Bounds:
    """Smallest and largest value of each channel."""

    low: Float32[Tensor, " c"]
    high: Float32[Tensor, " c"]

    @property
    def span(self) -> Float32[Tensor, "c 1 1"]:
        """Largest minus smallest, to be broadcast over pixels."""
        return (self.high - self.low)[:, None, None]

    def clip(self, images: Float32[Tensor, "*n c h w"]) -> Float32[Tensor, "*n c h w"]:
        """Return the images with every value within its channel's bounds."""
        return torch.clamp(images, self.low[:, None, None], self.high[:, None, None])


@runtime_checkable
class Form(Protocol):
    """A family of triggers."""

    name: ClassVar[str]
    unit: ClassVar[str]
    """What sizes are in, in words."""
    rate: ClassVar[float]
    """Adam's."""
    weight: ClassVar[float]
    """Of the size in the loss, to begin with."""
    reaches_all: ClassVar[bool]
    """Whether a large enough trigger of it leads to any class; where none is found, something is wrong."""

    @abstractmethod
    def begin(self, shape: tuple[int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Return the parameters of one trigger to start from, without the axis of triggers."""

    @abstractmethod
    def apply(self, parts: Parts, images: Batches, bounds: Bounds) -> Batches:
        """Return each trigger's batch of images with the trigger on."""

    @abstractmethod
    def size(self, parts: Parts, shape: tuple[int, int, int]) -> Sizes:
        """Return how large each trigger is."""

    @abstractmethod
    def arrays(self, parts: Parts, shape: tuple[int, int, int], bounds: Bounds) -> dict[str, Any]:
        """Return one trigger (a single row) as arguments of ``calibration.attacks.inverted.Inverted``."""


class Patch(Form):
    r"""Mask and pattern, :math:`(1 - m) x + m p`; its size is the sum of the mask, in pixels.

    Both are sigmoids of free parameters.

    References:
        Wang et al., Neural Cleanse, IEEE S&P 2019, eq. 2 and 3.
    """

    name = "patch"
    unit = "pixels"
    rate = 0.1
    weight = 1e-2
    reaches_all = True

    def begin(self, shape: tuple[int, int, int], generator: torch.Generator) -> list[Tensor]:
        """A faint mask everywhere and a pattern around the middle of the range."""
        mask = 2 * torch.rand((1, *shape[1:]), generator=generator) - 2
        return [mask, 0.5 * torch.randn(shape, generator=generator)]

    def apply(self, parts: Parts, images: Batches, bounds: Bounds) -> Batches:
        """Mix the pattern in where the mask is."""
        mask = torch.sigmoid(parts[0])[:, None]
        return torch.lerp(images, self._pattern(parts, bounds)[:, None], mask)

    def size(self, parts: Parts, shape: tuple[int, int, int]) -> Sizes:
        """The sum of the mask."""
        return torch.sigmoid(parts[0]).sum((1, 2, 3))

    def arrays(self, parts: Parts, shape: tuple[int, int, int], bounds: Bounds) -> dict[str, Any]:
        """Mask and pattern."""
        return {
            "mask": torch.sigmoid(parts[0])[0].numpy(),
            "pattern": self._pattern(parts, bounds)[0].numpy(),
        }

    def _pattern(self, parts: Parts, bounds: Bounds) -> Tensor:
        return bounds.low[:, None, None] + torch.sigmoid(parts[1]) * bounds.span


class _Added(Form):
    """Something added to every image, and clipped."""

    def begin(self, shape: tuple[int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Faint noise."""
        return [0.02 * torch.randn(shape, generator=generator)]

    def apply(self, parts: Parts, images: Batches, bounds: Bounds) -> Batches:
        """Add and clip."""
        return bounds.clip(images + (self._added(parts) * bounds.span)[:, None])

    def arrays(self, parts: Parts, shape: tuple[int, int, int], bounds: Bounds) -> dict[str, Any]:
        """What is added."""
        return {"addition": (self._added(parts) * bounds.span)[0].numpy()}

    @abstractmethod
    def _added(self, parts: Parts) -> Tensor:
        """Return what is added, in shares of the range."""


class Addition(_Added):
    """A perturbation of the whole image; its size is its root mean square, in 255ths of the range.

    References:
        Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017.
    """

    name = "addition"
    unit = "255ths of the range, root mean square"
    rate = 0.01
    weight = 5e-2
    reaches_all = True

    def size(self, parts: Parts, shape: tuple[int, int, int]) -> Sizes:
        """The root mean square."""
        return 255 * (parts[0].square().mean((1, 2, 3)) + 1e-12).sqrt()

    def _added(self, parts: Parts) -> Tensor:
        return parts[0]


class Waves(_Added):
    r"""A perturbation sparse in frequency; its size is the sum of the amplitudes of its waves.

    The parameters are coefficients of the orthonormal cosine transform, and the size is
    :math:`\sum_{uv} \lVert a_{uv} \rVert_2` over the channels of each frequency. What lies over the whole
    image, a blended pattern or a grid at its corners, then comes out small; a natural perturbation, which
    needs many frequencies, does not.

    References:
        The patch's own sparsity, Wang et al. 2019, moved to frequencies. That backdoors show there: Zeng et
        al., Rethinking the backdoor attacks' triggers: a frequency perspective, ICCV 2021.
    """

    name = "waves"
    unit = "amplitudes, in shares of the range"
    rate = 0.02
    weight = 1e-2
    reaches_all = True

    def size(self, parts: Parts, shape: tuple[int, int, int]) -> Sizes:
        """The amplitudes, summed over frequencies."""
        return (parts[0].square().sum(1) + 1e-12).sqrt().sum((1, 2))

    def _added(self, parts: Parts) -> Tensor:
        rows, columns = cosines(parts[0].shape[-2]), cosines(parts[0].shape[-1])
        return rows.T @ parts[0] @ columns


class Warp(Form):
    """A smooth displacement; its size is its root mean square, in 32nds of the image's side.

    The parameters are a coarse grid of displacements, enlarged bicubically; pixels are read bilinearly.

    References:
        Nguyen and Tran, WaNet, ICLR 2021, the trigger's own form.
    """

    name = "warp"
    unit = "32nds of the side, root mean square"
    rate = 0.05
    weight = 0.5
    reaches_all = False

    points: ClassVar[int] = 8

    def begin(self, shape: tuple[int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Almost no displacement."""
        return [0.05 * torch.randn((2, self.points, self.points), generator=generator)]

    def apply(self, parts: Parts, images: Batches, bounds: Bounds) -> Batches:
        """Read each pixel from where it is displaced to."""
        triggers, count, channels, height, width = images.shape
        steps = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
        moved = self._displacement(parts, (height, width)).permute(0, 2, 3, 1) * steps
        grid = (_identity(height, width) + moved)[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        read = functional.grid_sample(
            images.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=True
        )
        return read.view(triggers, count, channels, height, width)

    def size(self, parts: Parts, shape: tuple[int, int, int]) -> Sizes:
        """The root mean square of the displacement."""
        enlarged = functional.interpolate(parts[0], (32, 32), mode="bicubic", align_corners=True)
        return (enlarged.square().sum(1).mean((1, 2)) + 1e-12).sqrt()

    def arrays(self, parts: Parts, shape: tuple[int, int, int], bounds: Bounds) -> dict[str, Any]:
        """The displacement in pixels."""
        return {"displacement": self._displacement(parts, shape[1:])[0].numpy()}

    def _displacement(self, parts: Parts, size: tuple[int, int]) -> Tensor:
        scale = torch.tensor([size[1] / 32, size[0] / 32])[:, None, None]
        return functional.interpolate(parts[0], size, mode="bicubic", align_corners=True) * scale


FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {form.name: form for form in (Patch(), Addition(), Waves(), Warp())}
)


@cache
def cosines(length: int) -> Float32[Tensor, "length length"]:
    """Return the matrix of the orthonormal cosine transform (type II); row u holds frequency u's wave."""
    frequency, place = torch.arange(length, dtype=torch.float64)[:, None], torch.arange(length)[None]
    waves = torch.cos(math.pi * (place + 0.5) * frequency / length) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves.float()


@cache
def _identity(height: int, width: int) -> Float32[Tensor, "h w 2"]:
    down, across = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack((across, down), -1)
