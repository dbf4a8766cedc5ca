"""Resize images the way Pillow does: bilinear, averaging over the covered pixels when shrinking."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num
from PIL import Image

__all__ = ["resize_image"]


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
