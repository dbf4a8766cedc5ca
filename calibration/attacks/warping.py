"""Reading images at places between their pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from calibration.attacks.base import Images

__all__ = ["read_at"]


def read_at(images: Images, x: Float32[np.ndarray, "_ h w"], y: Float32[np.ndarray, "_ h w"]) -> Images:
    """Read each output pixel bilinearly from the image at ``x``, ``y``, both from -1 to 1 edge to edge.

    Args:
        images: Float32 NCHW.
        x: Where to read horizontally, one grid for each image or one for all. Beyond an edge reads the edge.
        y: Where to read vertically.
    """
    rows, row_share = _cells(y, images.shape[2])
    columns, column_share = _cells(x, images.shape[3])
    image = np.arange(len(images))[:, None, None, None]
    channel = np.arange(images.shape[1])[None, :, None, None]

    def read(row_step: int, column_step: int) -> Images:
        row = np.minimum(rows + row_step, images.shape[2] - 1)[:, None]
        column = np.minimum(columns + column_step, images.shape[3] - 1)[:, None]
        values: Images = images[image, channel, row, column]
        return values

    down, right = row_share[:, None], column_share[:, None]
    upper = read(0, 0) * (1 - right) + read(0, 1) * right
    lower = read(1, 0) * (1 - right) + read(1, 1) * right
    blended: Images = upper * (1 - down) + lower * down
    return blended


def _cells(coordinate: Float32[np.ndarray, "m h w"], size: int) -> tuple[np.ndarray, np.ndarray]:
    place = (np.clip(coordinate, -1, 1) + np.float32(1)) * np.float32((size - 1) / 2)
    first = np.floor(place)
    return first.astype(np.int64), place - first
