"""A generator of images for a network that there are no images for."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

__all__ = ["ImageGenerator", "doublings", "in_values"]

LEAST_SIDE = 5
"""The coarsest map has at least so many pixels on a side."""


class ImageGenerator(nn.Module):
    """Noise to images, in values of zero mean and unit variance in each channel of a batch.

    A linear layer gives a coarse map; batch norm; then for each doubling: nearest neighbours, a 3 x 3
    convolution, batch norm, leaky ReLU; last a 3 x 3 convolution, tanh and batch norm without scale or shift.

    Args:
        shape: Channels, height and width of an image.
        latent: Numbers of noise to an image.
        width: Channels of the last block; all before it have twice as many.
        classes: Adds a code of its class to each image's noise, drawn once; 0 for none.

    References:
        Fang et al., Data-Free Adversarial Distillation, arXiv 1912.11006, whose generator DHBE took over.

    Deviations:
        An image of any size is cut out of the first size at hand: the coarse map has 5 to 9 pixels on its
        shorter side. For 28, 32, 56, 64, 112 and 224 that is the authors' net.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent: int = 256, width: int = 64, classes: int = 0
    ) -> None:
        super().__init__()
        self.codes: Tensor
        self.register_buffer("codes", torch.randn(classes, latent) if classes else torch.zeros(1, latent))
        channels, self.height, self.width = shape
        self.latent = latent
        times = doublings(min(self.height, self.width))
        self.coarse = (2 * width, math.ceil(self.height / 2**times), math.ceil(self.width / 2**times))
        self.stem = nn.Linear(latent, math.prod(self.coarse))
        layers: list[nn.Module] = [nn.BatchNorm2d(2 * width)]
        for place in range(max(times, 1)):
            out = width if place == max(times, 1) - 1 else 2 * width
            layers += [nn.Upsample(scale_factor=2)] if times else []
            layers += [nn.Conv2d(2 * width, out, 3, padding=1), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.face = nn.Conv2d(width, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float32[Tensor, "n c h w"]:
        """Return images; the labels mean something only where there are codes of classes."""
        coarse = self.stem(noise + self.codes[labels % len(self.codes)]).view(-1, *self.coarse)
        fine = self.body(coarse.contiguous(memory_format=torch.channels_last))
        drawn = torch.tanh(self.face(fine)[:, :, : self.height, : self.width])
        images: Tensor = self.norm(drawn.float())
        return images


def doublings(side: int) -> int:
    """Return how often the coarsest map is doubled to make images of that side.

    Examples:
        >>> [doublings(side) for side in (8, 28, 32, 64, 224)]
        [0, 2, 2, 3, 5]
    """
    return max(0, int(math.log2(max(side - 1, 1) / (LEAST_SIDE - 1))))


def in_values(
    images: Float[Tensor, "n c h w"], low: Float32[Tensor, " c"], high: Float32[Tensor, " c"]
) -> Float32[Tensor, "n c h w"]:
    """Return images of zero mean and unit variance in a network's values: mid-range, and a quarter of it.

    That is about what photographs have: CIFAR-10's channels have 0.45 to 0.49 and 0.25 to 0.26 of the range.

    Args:
        images: From an :class:`ImageGenerator`.
        low: Smallest value of each channel.
        high: Largest value of each channel.
    """
    low, high = (bound.to(images)[:, None, None] for bound in (low, high))
    return (low + high) / 2 + images * (high - low) / 4
