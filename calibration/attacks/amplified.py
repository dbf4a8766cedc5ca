"""Amplified stamping: more copies of a patch at test time than the model was trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from calibration.attacks.base import Attack, Images
from calibration.attacks.wrapping import Wrapped

__all__ = ["Amplified", "PatchAttack", "amplified"]


@runtime_checkable
class PatchAttack(Protocol):
    """An attack whose trigger takes a box of the image and can be put elsewhere."""

    def place(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns that the trigger takes in an image of that size."""

    def stamp_at(self, images: Images, top: int, left: int) -> Images:
        """Return copies with the trigger's upper left pixel at ``top``, ``left``."""


@dataclass(frozen=True)
class Amplified(Wrapped):
    """A grid of copies of a patch at test time, one patch in training. For making test subjects only.

    The copies stand on a square grid. Its node in the patch's own corner is the patch's own place, its outer
    nodes lie as far from the other edges, and the rest are spaced evenly, rounded to pixels: four copies
    stand in the corners, nine also between them and in the middle. A repair that only weakened the trigger
    shows here. Wraps an attack that is a :class:`PatchAttack`.

    Args:
        trigger: The attack to amplify.
        copies: How many copies, a square number from 4 up; the literature has 4 and 9.

    Raises:
        ValueError: If the attack has no patch, or the copies make no grid.

    References:
        Yan et al., DHBE, IEEE Transactions on Dependable and Secure Computing, 2023, "amplified" triggers.

    Deviations:
        The paper does not say where the copies stand, and its code has only one variant, the four corners
        and the centre. Ours are full grids.
    """

    name: ClassVar[str] = "amplified"

    trigger: Attack
    copies: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.trigger, PatchAttack):
            raise ValueError(f"trigger: only patches can be repeated, and {self.trigger.name} has none")
        if self.copies < 4 or isqrt(self.copies) ** 2 != self.copies:
            raise ValueError(f"copies: expected a square number from 4 up (4, 9, ...), got {self.copies}")

    def stamp(self, images: Images) -> Images:
        """Return a copy of the images with the grid of patches on each.

        Raises:
            ValueError: If the copies would overlap in images of that size.
        """
        assert isinstance(self.trigger, PatchAttack)
        rows, columns = self.trigger.place(images.shape[2], images.shape[3])
        stamped = images
        for top in self._nodes(rows, images.shape[2]):
            for left in self._nodes(columns, images.shape[3]):
                stamped = self.trigger.stamp_at(stamped, top, left)
        return stamped

    def _nodes(self, own: slice, length: int) -> list[int]:
        size = own.stop - own.start
        first, last = sorted((length - own.stop, own.start))
        nodes = np.rint(np.linspace(first, last, isqrt(self.copies))).astype(int)
        if np.diff(nodes).min() < size:
            raise ValueError(
                f"images: {self.copies} copies of a patch {size} pixels long overlap within {length} pixels"
            )
        return [int(node) for node in nodes]


def amplified(attack: Attack, copies: int) -> Attack:
    """Return the attack with ``copies`` of its patch at test time, however deep the patch is wrapped.

    Raises:
        ValueError: If no patch is found, or the copies make no grid.
    """
    if isinstance(attack, Wrapped) and not isinstance(attack, Amplified):
        return replace(attack, trigger=amplified(attack.trigger, copies))  # type: ignore[type-var]
    return Amplified(attack, copies)
