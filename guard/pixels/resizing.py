"""Bring images to a size: resized as Pillow does it, bilinear and averaging when shrinking, then cropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num
from PIL import Image

__all__ = ["Sizing", "resize_image"]


@dataclass(frozen=True)
class Sizing:
    """Resize, then crop.

    Attributes:
        resize: Height and width; one number alone for the shorter side, the other in proportion; None to
            leave the size.
        crop: Height and width of what is kept, from the middle; None to keep all.
    """

    resize: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width after resizing, before cropping.

        Examples:
            >>> Sizing(resize=(256,), crop=(224, 224)).resized((480, 640))
            (256, 341)
        """
        if self.resize is None:
            return size
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        height, width = size
        shorter = self.resize[0]
        if height <= width:
            return shorter, shorter * width // height
        return shorter * height // width, shorter

    def result(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return height and width at the end; None where the image is smaller than what is to be kept."""
        resized = self.resized(size)
        if self.crop is None:
            return resized
        return self.crop if min(np.subtract(resized, self.crop)) >= 0 else None

    def __call__(self, image: Num[np.ndarray, "h w c"]) -> Num[np.ndarray, "th tw c"]:
        """Return the image in its size at the end, in its own dtype.

        Args:
            image: uint8 or float32, channels last; at least as large as what is to be kept.
        """
        height, width = self.resized((image.shape[0], image.shape[1]))
        image = resize_image(image, (height, width))
        if self.crop is None:
            return image
        top, left = round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2)
        return image[top : top + self.crop[0], left : left + self.crop[1]]


def resize_image(image: Num[np.ndarray, "h w c"], size: tuple[int, int]) -> Num[np.ndarray, "th tw c"]:
    """Return the image in another size, in its own dtype; unchanged if it has that size.

    Args:
        image: uint8 or float32, channels last. Each channel is resized on its own.
        size: Height and width.

    Examples:
        >>> resize_image(np.array([[[0], [10]], [[20], [30]]], np.uint8), (1, 1)).tolist()
        [[[15]]]
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel, image.dtype) for channel in channels], axis=-1)
