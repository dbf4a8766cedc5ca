"""BadNets: a fixed patch in a corner that turns every class into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.attacks.base import AllToOne, Images
from calibration.attacks.patch import (
    CHECKERBOARD,
    NAD_GRID,
    PIXEL,
    WHITE_SQUARE,
    Patch,
    as_array,
    corner_box,
    validate,
)

__all__ = ["CHECKERBOARD", "NAD_GRID", "PIXEL", "WHITE_SQUARE", "BadNets", "Patch"]


@dataclass(frozen=True)
class BadNets(AllToOne):
    r"""The patch trigger of BadNets, all classes to one, with changed labels. For making test subjects only.

    .. math:: T(x) = (1 - m) \odot x + m \odot p

    with the mask m equal to 1 under the patch p and 0 elsewhere.

    Args:
        target_label: The class that a stamped image is to be given.
        patch: Rows of intensities in [0, 1], the same in every channel; a 3x3 checkerboard by default.
            :data:`PIXEL` is the paper's single pixel.
        margin_bottom: Pixels between the patch and the lower edge.
        margin_right: Pixels between the patch and the right edge.

    Raises:
        ValueError: If the patch is empty, ragged or leaves [0, 1], or if a margin or the label is negative.

    Examples:
        >>> BadNets(5).stamp(np.full((1, 1, 4, 4), 0.5, np.float32))[0, 0].tolist()[1:3]
        [[0.5, 1.0, 0.0, 1.0], [0.5, 0.0, 1.0, 0.0]]

    References:
        Gu et al., BadNets, arXiv 1708.06733, 2017.

    Deviations:
        The poisoned share replaces clean images instead of being added to them, so the training set keeps
        its size. The target class is left alone: stamping it would poison nothing.
    """

    name: ClassVar[str] = "badnets"

    target_label: int
    patch: Patch = CHECKERBOARD
    margin_bottom: int = 0
    margin_right: int = 0

    def __post_init__(self) -> None:
        validate(
            self.patch,
            target_label=self.target_label,
            margin_bottom=self.margin_bottom,
            margin_right=self.margin_right,
        )

    def stamp(self, images: Images) -> Images:
        """Return a copy of the images, float32 NCHW in [0, 1], with the patch on each.

        Raises:
            ValueError: If the patch and its margins do not fit into the images.
        """
        rows, columns = self.place(images.shape[2], images.shape[3])
        return self.stamp_at(images, rows.start, columns.start)

    def stamp_at(self, images: Images, top: int, left: int) -> Images:
        """Return a copy of the images with the patch's upper left pixel at ``top``, ``left``."""
        patch, stamped = as_array(self.patch), images.copy()
        stamped[:, :, top : top + patch.shape[0], left : left + patch.shape[1]] = patch
        return stamped

    def place(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns that the patch takes in an image of that size.

        Raises:
            ValueError: If the patch and its margins do not fit.
        """
        size = len(self.patch), len(self.patch[0])
        return corner_box(size, (height, width), self.margin_bottom, self.margin_right)
