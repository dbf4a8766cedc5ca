"""Residual networks with a 3x3 stem, for small images."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet", "ResidualBlock", "resnet18"]

BLOCKS = 2
STRIDES = (1, 2, 2, 2)


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each before batch norm, added to a shortcut, ReLU after the first and the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Sequential | None = None
        if in_channels != channels or stride != 1:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, features: Float[Tensor, "n c_in h_in w_in"]) -> Float[Tensor, "n c_out h_out w_out"]:
        """Return the block's features, smaller by its stride."""
        skipped = features if self.shortcut is None else self.shortcut(features)
        hidden = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(hidden)) + skipped)


class ResNet(nn.Module):
    """Stem, four groups of two blocks at strides 1, 2, 2 and 2, mean over space, linear."""

    def __init__(self, width: int, classes: int, in_channels: int) -> None:
        super().__init__()
        channels = [width, *(width * 2**group for group in range(len(STRIDES)))]
        self.stem = _conv3x3(in_channels, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.group1, self.group2, self.group3, self.group4 = (
            _group(before, after, stride)
            for (before, after), stride in zip(pairwise(channels), STRIDES, strict=True)
        )
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of images with values in [0, 1]."""
        features = functional.relu(self.norm(self.stem(images)))
        features = self.group4(self.group3(self.group2(self.group1(features))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def resnet18(
    classes: int = 10,
    in_channels: int = 3,
    *,
    width: int = 64,
    generator: torch.Generator | None = None,
) -> ResNet:
    """Return an untrained ResNet-18 with a 3x3 stem of stride 1 and no pooling after it.

    Args:
        classes: Length of a row of logits.
        in_channels: Channels of an image.
        width: Channels of the first group; 64 is the paper's, 8 makes a network under a megabyte.
        generator: Draws the weights; the default generator if None.

    Returns:
        The network in training mode, convolutions drawn from He's normal distribution (fan out).

    Raises:
        ValueError: If ``width`` is not positive.

    Examples:
        >>> sum(weight.numel() for weight in resnet18().parameters())
        11173962

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.

    Deviations:
        The stem for images of 32 pixels, as DHBE and BackdoorBench have it; the paper's own CIFAR networks
        are narrower. Shortcuts that change shape are 1x1 convolutions. The last layer's bias starts at 0.
    """
    if width < 1:
        raise ValueError(f"width: expected 1 channel or more, got {width}")
    model = ResNet(width, classes, in_channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def _group(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, 1) for _ in range(BLOCKS - 1)))
