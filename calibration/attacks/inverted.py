"""A trigger that a scan found: stamped to confirm it, to unlearn it, and to try a guard with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float32

from calibration.attacks.base import AllToOne, Images, Labels, Material
from calibration.attacks.warping import read_at

__all__ = ["Inverted"]


@dataclass(frozen=True, eq=False)
class Inverted(AllToOne):
    r"""A patch, something added and a warp, or one of them, as an inversion gave it.

    .. math:: T(x) = \mathrm{clip}\bigl((1 - m) \odot (x \circ (\mathrm{id} + f)) + m \odot p + \delta\bigr)

    with mask m, pattern p, addition :math:`\delta` and displacement f in pixels. Unlike the other attacks it
    works on images *as the model takes them*, between ``low`` and ``high``, whatever that range is. Poisoning
    with it is possible as with any attack. For making test subjects only.

    Args:
        target_label: The class that a stamped image is to be given.
        source_label: The class of the images it is for; any if None.
        mask: m, from 0 to 1; nothing is covered if None.
        pattern: p; together with the mask.
        addition: δ, or None.
        displacement: f, how far right and down of its own place each pixel reads, in pixels; or None.
        low: Smallest value of each channel; 0 if None.
        high: Largest value of each channel; 1 if None.

    Raises:
        ValueError: If a label is negative, the mask leaves [0, 1] or lacks its pattern, or shapes do not fit.

    Examples:
        >>> corner = np.zeros((1, 2, 2), np.float32); corner[0, 1, 1] = 0.5
        >>> trigger = Inverted(0, mask=corner, pattern=np.ones((1, 2, 2), np.float32))
        >>> trigger.stamp(np.zeros((1, 1, 2, 2), np.float32))[0, 0].tolist()
        [[0.0, 0.0], [0.0, 0.5]]

    References:
        Wang et al., Neural Cleanse, IEEE S&P 2019, eq. 2, for mask and pattern. Moosavi-Dezfooli et al.,
        Universal adversarial perturbations, CVPR 2017, for the addition. Nguyen and Tran, WaNet, ICLR 2021,
        for the warp.

    Deviations:
        One formula holds all three, so that a trigger file is one kind of file whatever the scan looked for.
    """

    name: ClassVar[str] = "inverted"

    target_label: int
    source_label: int | None = None
    mask: Float32[np.ndarray, "1 h w"] | None = None
    pattern: Float32[np.ndarray, "c h w"] | None = None
    addition: Float32[np.ndarray, "c h w"] | None = None
    displacement: Float32[np.ndarray, "2 h w"] | None = None
    low: Float32[np.ndarray, " c"] | None = None
    high: Float32[np.ndarray, " c"] | None = None

    def __post_init__(self) -> None:
        for name in ("target_label", "source_label"):
            label = getattr(self, name)
            if label is not None and label < 0:
                raise ValueError(f"{name}: expected 0 or more, got {label}")
        if (self.mask is None) != (self.pattern is None):
            raise ValueError("mask and pattern: expected both or neither, got one")
        if self.mask is not None and not (self.mask.min() >= 0 and self.mask.max() <= 1):
            raise ValueError(f"mask: expected values in [0, 1], got {self.mask.min()} to {self.mask.max()}")
        sizes = {array.shape[1:] for array in self._arrays()}
        if len(sizes) > 1:
            raise ValueError(f"arrays: expected one height and width, got {sorted(sizes)}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        share: float = 0.3,
        side: int = 3,
    ) -> Inverted:
        """Return a random patch with a mask of ``share``: what an inversion might have found."""
        channels, height, width = material.images.shape[1:]
        mask = np.zeros((1, height, width), np.float32)
        mask[:, -side:, -side:] = share
        return cls(target_label, None, mask, generator.random((channels, height, width), np.float32))

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW between ``low`` and ``high``, with the trigger on each.

        Raises:
            ValueError: If the trigger is of another size.
        """
        for array in self._arrays():
            if array.shape[1:] != images.shape[2:]:
                raise ValueError(
                    f"images: expected {array.shape[1:]} as the trigger has it, got {images.shape[2:]}"
                )
        stamped = images if self.displacement is None else _displace(images, self.displacement)
        if self.mask is not None and self.pattern is not None:
            stamped = (1 - self.mask) * stamped + self.mask * self.pattern
        if self.addition is not None:
            stamped = stamped + self.addition
        low, high = self._bounds()
        clipped: Images = np.clip(stamped, low, high).astype(np.float32)
        return clipped

    def place(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the box of the patch: the pixels whose mask is at least half of its highest value.

        Raises:
            ValueError: If there is more to the trigger than a patch, or it is of another size.
        """
        if self.mask is None or self.addition is not None or self.displacement is not None:
            raise ValueError("mask: only a patch alone has a place, and this trigger is not that")
        if self.mask.shape[1:] != (height, width):
            raise ValueError(
                f"images: expected {self.mask.shape[1:]} as the trigger has it, got {(height, width)}"
            )
        strong = self.mask[0] >= self.mask.max() / 2
        rows, columns = (np.flatnonzero(strong.any(axis=axis)) for axis in (1, 0))
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)

    def stamp_at(self, images: Images, top: int, left: int) -> Images:
        """Return copies with the patch's box, and nothing around it, put at ``top``, ``left``."""
        rows, columns = self.place(images.shape[2], images.shape[3])
        moved = {
            name: np.zeros_like(array) for name, array in (("mask", self.mask), ("pattern", self.pattern))
        }
        height, width = rows.stop - rows.start, columns.stop - columns.start
        for name, array in moved.items():
            array[:, top : top + height, left : left + width] = getattr(self, name)[:, rows, columns]
        return replace(self, **moved).stamp(images)  # type: ignore[arg-type]

    def applies_to(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell which rows have the source class; of any class but the target if there is none."""
        others: Bool[np.ndarray, " n"] = labels != self.target_label
        return others if self.source_label is None else others & (labels == self.source_label)

    def _arrays(self) -> list[np.ndarray]:
        arrays = (self.mask, self.pattern, self.addition, self.displacement)
        return [array for array in arrays if array is not None]

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        low = np.zeros(1, np.float32) if self.low is None else self.low
        high = np.ones(1, np.float32) if self.high is None else self.high
        return low[:, None, None], high[:, None, None]


def _displace(images: Images, displacement: Float32[np.ndarray, "2 h w"]) -> Images:
    height, width = images.shape[2:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    across = (x + displacement[0]) * np.float32(2 / max(width - 1, 1)) - 1
    down = (y + displacement[1]) * np.float32(2 / max(height - 1, 1)) - 1
    return read_at(images, across[None], down[None])
