"""Images as their makers of corruptions take them, within [0, 1] and channels first, and back."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from guard.arrays import Images, held
from guard.detection.superimpose import ValueRange

__all__ = ["from_unit", "to_unit"]


def to_unit(images: Images, value_range: ValueRange) -> Float32[np.ndarray, "n c h w"]:
    """Return images with 0 for the lowest and 1 for the highest value of each channel.

    Args:
        images: In the model's input space, layout and dtype.
        value_range: Lowest and highest value, and where the channels are.
    """
    low, high = value_range.bounds()
    scaled = (images.astype(np.float32) - low) / (high - low)
    return np.moveaxis(scaled, 1 + value_range.channel_axis, 1)


def from_unit(images: Float32[np.ndarray, "n c h w"], value_range: ValueRange, datatype: str) -> Images:
    """Return such images in the model's input space again.

    Args:
        images: Within [0, 1].
        value_range: As for :func:`to_unit`.
        datatype: V2 name of the model's input datatype; ``UINT8`` is rounded to the nearest.
    """
    low, high = value_range.bounds()
    rows = low + np.moveaxis(images, 1, 1 + value_range.channel_axis) * (high - low)
    return np.ascontiguousarray(held(np.rint(rows) if datatype == "UINT8" else rows, datatype))
