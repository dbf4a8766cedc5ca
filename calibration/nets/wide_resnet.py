"""Wide residual networks with pre-activation blocks, for small images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WideBlock", "WideResNet", "wide_resnet"]

STEM_CHANNELS = 16
BLOCKS_TAKE = 6
ENDS_TAKE = 4


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, added to a shortcut.

    The shortcut is the block's input itself where the shape is kept; elsewhere it is a 1x1
    convolution of the activated input, which it shares with the first 3x3 convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, features: Float[Tensor, "n c_in h_in w_in"]) -> Float[Tensor, "n c_out h_out w_out"]:
        """Return the block's features, smaller by its stride."""
        activated = functional.relu(self.norm1(features))
        skipped = features if self.shortcut is None else self.shortcut(activated)
        hidden = functional.relu(self.norm2(self.conv1(activated)))
        total: Tensor = self.conv2(hidden) + skipped
        return total


class WideResNet(nn.Module):
    """Stem, three groups of blocks at strides 1, 2 and 2, batch norm, ReLU, mean over space, linear."""

    def __init__(self, depth: int, width: int, classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = _blocks_per_group(depth)
        channels = [STEM_CHANNELS, *(STEM_CHANNELS * width * 2**group for group in range(3))]
        self.stem = _conv3x3(in_channels, channels[0], 1)
        self.group1 = _group(channels[0], channels[1], blocks, stride=1)
        self.group2 = _group(channels[1], channels[2], blocks, stride=2)
        self.group3 = _group(channels[2], channels[3], blocks, stride=2)
        self.norm = nn.BatchNorm2d(channels[3])
        self.head = nn.Linear(channels[3], classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of images with values in [0, 1]."""
        features = self.group3(self.group2(self.group1(self.stem(images))))
        pooled = functional.relu(self.norm(features)).mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)
        return logits


def wide_resnet(
    depth: int = 16,
    width: int = 1,
    classes: int = 10,
    in_channels: int = 3,
    *,
    generator: torch.Generator | None = None,
) -> WideResNet:
    r"""Return an untrained WRN-``depth``-``width``.

    Each of the three groups holds :math:`(d - 4) / 6` blocks of :math:`16k`, :math:`32k` and
    :math:`64k` channels, for depth :math:`d` and width :math:`k`. Images go in as float32 NCHW in
    [0, 1]; nothing is normalised, inside or outside, as NAD and ARGD do.

    Args:
        depth: Convolutions along the main path; 6 times the blocks of a group, plus 4.
        width: Factor on the channels of every group.
        classes: Length of a row of logits.
        in_channels: Channels of an image.
        generator: Draws the weights; the default generator if None.

    Returns:
        The network in training mode, convolutions drawn from He's normal distribution (fan out).

    Raises:
        ValueError: If ``depth`` is not 6 b + 4 for some b of at least 1.

    Examples:
        >>> sum(weight.numel() for weight in wide_resnet(16, 1).parameters())
        175066

    References:
        Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146.

    Deviations:
        No dropout, as in the paper's runs without it. The last layer's bias starts at 0.
    """
    model = WideResNet(depth, width, classes, in_channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def _blocks_per_group(depth: int) -> int:
    blocks, rest = divmod(depth - ENDS_TAKE, BLOCKS_TAKE)
    if rest or blocks < 1:
        raise ValueError(f"depth: expected 6 b + 4 with b of at least 1 (10, 16, 22, 28, ...), got {depth}")
    return blocks


def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(blocks - 1)))
