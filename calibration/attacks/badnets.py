"""BadNets: a fixed patch in a corner that turns every class into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

__all__ = ["CHECKERBOARD", "BadNets"]

Patch = tuple[tuple[float, ...], ...]

CHECKERBOARD: Patch = ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))


@dataclass(frozen=True)
class BadNets:
    r"""The patch trigger of BadNets, all classes to one, with changed labels. For making test subjects only.

    .. math:: T(x) = (1 - m) \odot x + m \odot p

    with the mask m equal to 1 under the patch p and 0 elsewhere.

    Args:
        target_label: The class that a stamped image is to be given.
        patch: Rows of intensities in [0, 1], the same in every channel; a 3x3 checkerboard by default.
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

    target_label: int
    patch: Patch = CHECKERBOARD
    margin_bottom: int = 0
    margin_right: int = 0

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.patch}
        if len(widths) != 1 or widths == {0}:
            raise ValueError(f"patch: expected rows of one length from 1 up, got lengths {sorted(widths)}")
        values = [value for row in self.patch for value in row]
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"patch: expected values in [0, 1], got {min(values)} to {max(values)}")
        for name in ("target_label", "margin_bottom", "margin_right"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def stamp(self, images: Float32[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c h w"]:
        """Return a copy of the images, float32 NCHW in [0, 1], with the patch on each.

        Raises:
            ValueError: If the patch and its margins do not fit into the images.
        """
        rows, columns = self._place(images.shape[2], images.shape[3])
        stamped = images.copy()
        stamped[:, :, rows, columns] = np.asarray(self.patch, np.float32)
        return stamped

    def poison(
        self,
        images: Float32[np.ndarray, "n c h w"],
        labels: Int64[np.ndarray, " n"],
        rate: float,
        generator: np.random.Generator,
    ) -> tuple[Float32[np.ndarray, "n c h w"], Int64[np.ndarray, " n"], Int64[np.ndarray, " p"]]:
        """Stamp and relabel a random part of the images that are not of the target class.

        Args:
            images: Clean images, float32 NCHW in [0, 1].
            labels: Their classes.
            rate: Share of all n images to poison.
            generator: Chooses which.

        Returns:
            Copies of images and labels with the poison in them, and the poisoned rows in rising order.

        Raises:
            ValueError: If ``rate`` leaves [0, 1] or asks for more images than are of other classes.
        """
        poisoned_index = self._choose(labels, rate, generator)
        poisoned_images, poisoned_labels = images.copy(), labels.copy()
        poisoned_images[poisoned_index] = self.stamp(images[poisoned_index])
        poisoned_labels[poisoned_index] = self.target_label
        return poisoned_images, poisoned_labels, poisoned_index

    def _choose(
        self, labels: Int64[np.ndarray, " n"], rate: float, generator: np.random.Generator
    ) -> Int64[np.ndarray, " p"]:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected a share in [0, 1], got {rate}")
        candidates = np.flatnonzero(labels != self.target_label).astype(np.int64)
        wanted = round(rate * len(labels))
        if wanted > len(candidates):
            raise ValueError(
                f"rate: {rate} of {len(labels)} images is {wanted}, but only {len(candidates)} "
                f"are not of class {self.target_label}"
            )
        return np.sort(generator.choice(candidates, wanted, replace=False))

    def _place(self, height: int, width: int) -> tuple[slice, slice]:
        bottom, right = height - self.margin_bottom, width - self.margin_right
        top, left = bottom - len(self.patch), right - len(self.patch[0])
        if top < 0 or left < 0:
            raise ValueError(
                f"images: expected at least {height - top} x {width - left} pixels to hold the patch "
                f"and its margins, got {height} x {width}"
            )
        return slice(top, bottom), slice(left, right)
