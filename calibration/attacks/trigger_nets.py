"""The networks that draw the input-aware attack's triggers, and what their triggers are held to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Pixels", "apply_trigger", "diversity_loss", "sharpen", "trigger_net"]

Pixels = Float[Tensor, "n _ h w"]


def trigger_net(channels: int, out_channels: int, width: int, halvings: int) -> nn.Sequential:
    """Return an untrained image-to-image network with values in [0, 1]: down, a middle layer, up again."""
    sizes = [width * 2**level for level in range(halvings)]
    layers: list[nn.Module] = []
    for before, size in zip([channels, *sizes[:-1]], sizes, strict=True):
        layers += [*_convolution(before, size), *_convolution(size, size), nn.MaxPool2d(2)]
    layers += _convolution(sizes[-1], sizes[-1])
    for size, after in zip(sizes[::-1], [*sizes[-2::-1], out_channels], strict=True):
        layers += [nn.Upsample(scale_factor=2, mode="bilinear"), *_convolution(size, size)]
        layers += _convolution(size, after)
    return nn.Sequential(*layers[:-1], _HalfTanh())


def _convolution(channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels, momentum=0.05),
        nn.ReLU(),
    ]


class _HalfTanh(nn.Module):
    """Tanh moved into [0, 1]."""

    def forward(self, features: Pixels) -> Pixels:
        return torch.tanh(features) / 2 + 0.5


def apply_trigger(
    images: Pixels, donors: Pixels, pattern_net: nn.Module, mask_net: nn.Module | None, amplitude: float
) -> tuple[Pixels, Pixels]:
    """Return the images with the triggers that belong to the donors, and those triggers' patterns."""
    pattern: Pixels = pattern_net(donors)
    if mask_net is None:
        return (images + amplitude * (2 * pattern - 1)).clamp(0, 1), pattern
    return images + (pattern - images) * sharpen(mask_net(donors)), pattern


def sharpen(mask: Pixels) -> Pixels:
    r"""Push mask values towards 0 and 1: :math:`(\tanh(20 m - 10) + 1) / 2`."""
    return torch.tanh(20 * mask - 10) / 2 + 0.5


def diversity_loss(images: Pixels, others: Pixels, triggers: Pixels, other_triggers: Pixels) -> Tensor:
    r"""Return the mean of :math:`\|x - x'\| / (\|t - t'\| + 10^{-7})`, norms being root mean squares.

    Small where triggers of unlike images are unlike.
    """
    # Adding below the root keeps its gradient finite where two triggers are equal.
    apart = [
        ((one - other).square().mean(dim=(1, 2, 3)) + floor).sqrt()
        for one, other, floor in ((images, others, 0.0), (triggers, other_triggers, 1e-14))
    ]
    return (apart[0] / (apart[1] + 1e-7)).mean()
