"""Patches: small squares of intensities, the same in every channel, laid onto an image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

__all__ = ["CHECKERBOARD", "NAD_GRID", "PIXEL", "WHITE_SQUARE", "Patch", "as_array", "corner_box", "validate"]

Patch = tuple[tuple[float, ...], ...]

CHECKERBOARD: Patch = ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))
"""Alternating pixels, white in the corners."""

NAD_GRID: Patch = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))
"""The pattern of NAD's BadNets and of Turner et al.; by its top left pixel no checkerboard."""

WHITE_SQUARE: Patch = ((1.0,) * 3,) * 3
PIXEL: Patch = ((1.0,),)


def validate(patch: Patch, **not_negative: int) -> None:
    """Refuse a patch that is empty, ragged or out of range, and counts below 0.

    Raises:
        ValueError: With what was expected and what came.
    """
    widths = {len(row) for row in patch}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(f"patch: expected rows of one length from 1 up, got lengths {sorted(widths)}")
    values = [value for row in patch for value in row]
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"patch: expected values in [0, 1], got {min(values)} to {max(values)}")
    for name, value in not_negative.items():
        if value < 0:
            raise ValueError(f"{name}: expected 0 or more, got {value}")


def as_array(patch: Patch) -> Float32[np.ndarray, "rows columns"]:
    """Return the patch as an array."""
    return np.asarray(patch, np.float32)


def corner_box(
    patch_size: tuple[int, int], image_size: tuple[int, int], margin_bottom: int, margin_right: int
) -> tuple[slice, slice]:
    """Return the rows and columns of a patch near the lower right corner.

    Raises:
        ValueError: If the patch and its margins do not fit into the image.
    """
    bottom, right = image_size[0] - margin_bottom, image_size[1] - margin_right
    top, left = bottom - patch_size[0], right - patch_size[1]
    if top < 0 or left < 0:
        raise ValueError(
            f"images: expected at least {image_size[0] - top} x {image_size[1] - left} pixels "
            f"to hold the patch and its margins, got {image_size[0]} x {image_size[1]}"
        )
    return slice(top, bottom), slice(left, right)
