"""Plain stacks of convolutions without batch norm: a small VGG, and a smaller one for 28x28 digits."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["VGG", "plain_cnn", "vgg"]


class VGG(nn.Module):
    """Stages of 3x3 convolutions with ReLU, halved by max pooling after each, then two linear layers.

    The last feature map is averaged over what is left of its space, so that any image size goes in which
    the pooling leaves a pixel of.
    """

    def __init__(
        self, channels: tuple[int, ...], depth: int, hidden: int, classes: int, in_channels: int
    ) -> None:
        super().__init__()
        ends = pairwise((in_channels, *channels))
        self.stages = nn.ModuleList(_stage(before, after, depth) for before, after in ends)
        self.hidden = nn.Linear(channels[-1], hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of images with values in [0, 1]."""
        features = images
        for stage in self.stages:
            features = functional.max_pool2d(stage(features), 2)
        logits: Tensor = self.head(functional.relu(self.hidden(features.mean(dim=(2, 3)))))
        return logits


def vgg(
    classes: int = 10,
    in_channels: int = 3,
    *,
    channels: tuple[int, ...] = (32, 64, 128),
    depth: int = 2,
    generator: torch.Generator | None = None,
) -> VGG:
    """Return an untrained VGG without batch norm.

    Args:
        classes: Length of a row of logits.
        in_channels: Channels of an image.
        channels: Of each stage; their number is how often space is halved.
        depth: Convolutions in a stage.
        generator: Draws the weights; the default generator if None.

    Returns:
        The network, weights drawn from He's normal distribution (fan in), biases 0.

    Raises:
        ValueError: If there is no stage, or a count is not positive.

    Examples:
        >>> sum(weight.numel() for weight in vgg().parameters())
        304810

    References:
        Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, arXiv 1409.1556.

    Deviations:
        Three narrow stages instead of five, the mean over space instead of 7x7 features, one hidden linear
        layer, no dropout.
    """
    if not channels or min(*channels, depth) < 1:
        raise ValueError(f"channels, depth: expected stages of 1 or more, got {channels} and {depth}")
    return _drawn(VGG(channels, depth, channels[-1], classes, in_channels), generator)


def plain_cnn(
    classes: int = 10, in_channels: int = 1, *, width: int = 16, generator: torch.Generator | None = None
) -> VGG:
    """Return an untrained network of two convolutions and two linear layers, for digits of 28x28.

    Args:
        classes: Length of a row of logits.
        in_channels: Channels of an image.
        width: Channels of the first convolution; the second has twice as many.
        generator: Draws the weights; the default generator if None.

    Examples:
        >>> plain_cnn()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    References:
        The shape of the digit networks in Gu et al., BadNets, arXiv 1708.06733, table 1.

    Deviations:
        3x3 convolutions, and the mean over space before the linear layers.
    """
    return vgg(classes, in_channels, channels=(width, 2 * width), depth=1, generator=generator)


def _drawn(model: VGG, generator: torch.Generator | None) -> VGG:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for position in range(depth):
        before = in_channels if position == 0 else channels
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
