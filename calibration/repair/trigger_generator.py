"""A generator of small triggers, and how they are put on images: added, and never clipped."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

__all__ = ["TriggerGenerator", "draw_corners", "paste"]

CHANNELS = 64


class TriggerGenerator(nn.Module):
    """Noise to square patches with values from -1 to 1.

    A linear layer gives a map of 64 channels; batch norm; a 3 x 3 convolution; batch norm without scale or
    shift; tanh.

    Args:
        channels: Of an image.
        size: Height and width of a patch.
        latent: Numbers of noise to a patch.

    References:
        Yan et al., DHBE, ASIA CCS 2023, arXiv 2306.08009; the authors' code, "PreBN".
    """

    def __init__(self, channels: int, size: int = 5, latent: int = 256) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Linear(latent, CHANNELS * size**2)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.face = nn.Conv2d(CHANNELS, channels, 3, padding=1)
        self.spread = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Float[Tensor, "n z"]) -> Float32[Tensor, "n c s s"]:
        """Return patches."""
        drawn = self.face(self.norm(self.stem(noise).view(-1, CHANNELS, self.size, self.size)))
        return torch.tanh(self.spread(drawn.float()))


def draw_corners(
    count: int, sides: tuple[int, int], size: int, generator: torch.Generator
) -> Int64[Tensor, "m 2"]:
    """Return upper left corners at which a patch of that size lies within an image, any as likely.

    Args:
        count: m.
        sides: Height and width of an image.
        size: Height and width of a patch.
        generator: Draws them, on the CPU.
    """
    drawn = [torch.randint(side - size + 1, (count,), generator=generator) for side in sides]
    return torch.stack(drawn, 1)


def paste(
    images: Float[Tensor, "n c h w"],
    patches: Float[Tensor, "n c s s"],
    corners: Int64[Tensor, "m 2"],
    reach: Float32[Tensor, " c"],
) -> Float[Tensor, "n c h w"]:
    """Return images with a patch added to each, differentiable in both; sums are not clipped.

    Args:
        images: As the network takes them.
        patches: One for each, with values from -1 to 1.
        corners: Upper left ones; one for each image, or a single one for all.
        reach: What a patch's 1 adds, in each channel.
    """
    count, size = len(images), patches.shape[-1]
    corners = corners.to(images.device).expand(count, 2)
    span = torch.arange(size, device=images.device)
    rows = (corners[:, 0, None] + span)[:, :, None]
    columns = (corners[:, 1, None] + span)[:, None, :]
    canvas = torch.zeros_like(images).permute(0, 2, 3, 1)
    added = (patches * reach.to(patches)[:, None, None]).permute(0, 2, 3, 1).to(canvas)
    which = torch.arange(count, device=images.device)[:, None, None]
    return images + canvas.index_put((which, rows, columns), added).permute(0, 3, 1, 2)
