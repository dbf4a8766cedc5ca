"""Augmentation of image batches as tensors: shifted crops, mirroring, cutout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional

__all__ = ["NO_AUGMENTATION", "Augmentation", "augment"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training image, drawn anew each time it is seen.

    Args:
        padding: Zeros laid around an image before a window of its own size is cut out at random.
        flip: Mirror every other image, left to right.
        cutout: Side of a square blanked at a random place, its centre anywhere in the image; 0 for none.
            NAD's ``Cutout(1, 3)`` blanks 2x2 pixels, because its end is exclusive: 2 here.

    Raises:
        ValueError: If the padding or the side is negative.
    """

    padding: int = 4
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 pixels or more, got {getattr(self, name)}")


NO_AUGMENTATION = Augmentation(padding=0, flip=False)


def augment(
    images: Shaped[Tensor, "n c h w"], augmentation: Augmentation, generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    """Return augmented copies of a batch, on its device; all draws are made on the generator's.

    Args:
        images: Of any number type.
        augmentation: What to do.
        generator: Draws places and sides; how often it is asked depends on ``augmentation`` alone.
    """
    if augmentation.padding:
        images = _crop(images, augmentation.padding, generator)
    if augmentation.flip:
        mirrored = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
    if augmentation.cutout:
        images = images.masked_fill(_holes(images, augmentation.cutout, generator)[:, None], 0)
    return images


def _crop(
    images: Shaped[Tensor, "n c h w"], padding: int, generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    height, width = images.shape[2:]
    windows = functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    top, left = _draw(2 * padding + 1, len(images), generator).to(images.device)
    crops: Tensor = windows[torch.arange(len(images), device=images.device), :, top, left]
    return crops


def _holes(
    images: Shaped[Tensor, "n c h w"], side: int, generator: torch.Generator
) -> Shaped[Tensor, "n h w"]:
    height, width = images.shape[2:]
    row = torch.randint(height, (len(images), 1), generator=generator, device=generator.device)
    column = torch.randint(width, (len(images), 1), generator=generator, device=generator.device)
    rows = torch.arange(height, device=generator.device) - row + side // 2
    columns = torch.arange(width, device=generator.device) - column + side // 2
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    return inside.to(images.device)


def _draw(values: int, count: int, generator: torch.Generator) -> Shaped[Tensor, "2 n"]:
    return torch.randint(values, (2, count), generator=generator, device=generator.device)
