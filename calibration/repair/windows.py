"""Where a small patch moves a network: random patches tried in windows all over the image.

What a network answers to a patch that is there is not what its gradient says of a patch that is not: a
backdoor that is sure of itself hardly changes with any single pixel. A few patches drawn at random, in
windows side by side, show a trigger's place and a good start for its colours before any gradient is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

__all__ = ["Windows", "likely_windows", "steepest_windows"]

TRIED = 8
"""Random patches for each window; half of them have only the least and the greatest value."""


@dataclass(frozen=True, eq=False)
class Windows:
    """For each label, the windows in which a random patch brought its answer up most.

    Attributes:
        masks: 1 in the window, 0 outside, window by window of the first label, then of the next, ….
        patches: The best of the patches tried there, at its place; 0 outside.
        tried: Images that were sent through the network for them.
    """

    masks: Float32[Tensor, "p 1 h w"]
    patches: Float32[Tensor, "p c h w"]
    tried: int = 0

    def of(self, labels: Tensor, places: int) -> Windows:
        """Return those of some labels, each having so many."""
        rows = (labels[:, None] * places + torch.arange(places)).flatten().to(self.masks.device)
        return Windows(self.masks[rows], self.patches[rows])


def likely_windows(
    logits_of: Callable[[Tensor], Tensor],
    units: Float32[Tensor, "n c h w"],
    side: int,
    places: int,
    *,
    generator: torch.Generator,
    most: int,
) -> Windows:
    """Try random patches everywhere and return the likeliest windows of every label.

    A label's gain is how much its log-probability rises, mean over the images, by the best patch tried in a
    window; windows lie side by side, the last ones flush with the edge.

    Args:
        logits_of: From images of 0 to 1 to logits (n, k).
        units: A few clean images.
        side: Of a window, pixels.
        places: Windows for each label, as many as there are at most.
        generator: Draws the patches, on the CPU.
        most: Images in one call.
    """
    channels, height, width = units.shape[1:]
    corners = [(top, left) for top in _starts(height, side) for left in _starts(width, side)]
    patches = torch.rand((TRIED, channels, side, side), generator=generator)
    patches[TRIED // 2 :].round_()
    patches = patches.to(units.device)
    before = functional.log_softmax(logits_of(units).float(), 1).mean(0)
    gains = torch.stack(
        [_means(logits_of, units, patches, corner, most).to(before.device) - before for corner in corners]
    )
    best, which = gains.max(1)  # over the patches tried: (windows, k)
    found = best.topk(min(places, len(corners)), dim=0).indices.T  # (k, places)
    masks = torch.zeros(found.numel(), 1, height, width, device=units.device)
    starts = torch.zeros(found.numel(), channels, height, width, device=units.device)
    for row, (label, window) in enumerate(_pairs(found)):
        top, left = corners[window]
        masks[row, 0, top : top + side, left : left + side] = 1
        starts[row, :, top : top + side, left : left + side] = patches[which[window, label]]
    return Windows(masks, starts, len(units) * (1 + len(corners) * TRIED))


def steepest_windows(
    slopes: Float32[Tensor, "m c h w"], side: int, places: int, generator: torch.Generator
) -> Windows:
    """Return the windows in which gradients are largest, half a window apart, and random patches.

    Args:
        slopes: Of each label's loss by the pixels, on the device of the images.
        side: Of a window, pixels.
        places: Windows for each label.
        generator: Draws the patches, on the CPU.
    """
    energy = functional.avg_pool2d(slopes.abs().sum(1, keepdim=True), side, 1)[:, 0].cpu()
    masks = torch.zeros(len(slopes), places, 1, *slopes.shape[2:])
    half = max(1, side // 2)
    for left, mask in zip(energy, masks, strict=True):
        for place in range(places):
            top, start = divmod(int(left.argmax()), left.shape[1])
            mask[place, 0, top : top + side, start : start + side] = 1
            left[max(0, top - half) : top + half + 1, max(0, start - half) : start + half + 1] = -1
    masks = masks.flatten(0, 1)
    patches = masks * torch.rand((len(masks), *slopes.shape[1:]), generator=generator)
    return Windows(masks.to(slopes.device), patches.to(slopes.device))


def _means(
    logits_of: Callable[[Tensor], Tensor],
    units: Tensor,
    patches: Tensor,
    corner: tuple[int, int],
    most: int,
) -> Float32[Tensor, "t k"]:
    """Return each label's mean log-probability for each patch in one window."""
    top, left = corner
    side = patches.shape[-1]
    images = units.repeat(len(patches), 1, 1, 1)
    images[:, :, top : top + side, left : left + side] = patches.repeat_interleave(len(units), 0)
    answers = torch.cat([logits_of(part) for part in torch.split(images, most)]).float()
    return functional.log_softmax(answers, 1).view(len(patches), len(units), -1).mean(1)


def _pairs(found: Tensor) -> Iterator[tuple[int, int]]:
    for label, windows in enumerate(found.tolist()):
        for window in windows:
            yield label, window


def _starts(size: int, side: int) -> list[int]:
    """Return where windows begin along an axis.

    Examples:
        >>> _starts(10, 4), _starts(8, 4)
        ([0, 4, 6], [0, 4])
    """
    return sorted({*range(0, size - side + 1, side), size - side})
