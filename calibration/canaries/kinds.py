"""How canaries look, and which of them share a copy of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Attack
from calibration.attacks.blend import Blend
from calibration.attacks.low_confidence import LowConfidence
from calibration.attacks.patch import Patch
from calibration.attacks.sig import Sig
from calibration.attacks.source_specific import SourceSpecific
from calibration.canary_kinds import KINDS

__all__ = ["Canary", "copies_for", "make_canary"]

CONFIDENCE: Final = 0.6
"""Of the low-confidence canary. The papers' .4 is not learned within seconds."""

PERIODS: Final = 6.0
LEAST_PERIOD: Final = 5.0
"""Columns; a sinusoid of two columns a period is 0 in each of them."""


@dataclass(frozen=True, eq=False)
class Canary:
    """A canary.

    Attributes:
        kind: A key of :data:`calibration.canary_kinds.KINDS`.
        attack: On images float32 (n, c, h, w) in [0, 1]. How it poisons plays no part.
        confidence: Probability of the target that it is planted with.
    """

    kind: str
    attack: Attack
    confidence: float = 1.0


def copies_for(kinds: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return which kinds go into each copy of the model.

    Examples:
        >>> copies_for(("badnets", "low_confidence", "sig"))
        [('badnets', 'sig'), ('low_confidence',)]
    """
    copies: dict[str, tuple[str, ...]] = {}
    for kind in dict.fromkeys(kinds):
        name = KINDS[kind].copy
        copies[name] = (*copies.get(name, ()), kind)
    return list(copies.values())


def make_canary(
    kind: str,
    target: int,
    shape: tuple[int, int, int],
    predicted: Int64[np.ndarray, " n"],
    classes: int,
    generator: np.random.Generator,
) -> Canary:
    """Return a canary of a kind, its pattern drawn.

    Args:
        kind: A key of :data:`calibration.canary_kinds.KINDS`.
        target: The class that it leads to; of no account for ``all_to_all``.
        shape: Channels, height and width of the images.
        predicted: Class that the model gives to each image it is planted with.
        classes: How many the model has.
        generator: Draws the pattern.

    Raises:
        ValueError: If the images are too small for its patch.
    """
    patch = _corner_patch(target, shape, generator)
    if kind == "badnets":
        return Canary(kind, patch)
    if kind == "blend":
        return Canary(kind, Blend(target, generator.random(shape, np.float32)))
    if kind == "sig":
        return Canary(kind, Sig(target, frequency=min(PERIODS, shape[2] / LEAST_PERIOD)))
    if kind == "low_confidence":
        return Canary(kind, LowConfidence(patch, classes, CONFIDENCE), CONFIDENCE)
    if kind == "all_to_all":
        return Canary(kind, AllToAll(patch, classes))
    counts = np.bincount(predicted, minlength=classes)
    counts[target] = -1
    return Canary(kind, SourceSpecific(patch, (int(counts.argmax()),)))


def _corner_patch(target: int, shape: tuple[int, int, int], generator: np.random.Generator) -> BadNets:
    """Return a patch of black and white pixels in one of the corners."""
    _, height, width = shape
    side = max(3, round(min(height, width) / 6.4))
    pixels = generator.integers(0, 2, (side, side))
    pixels[0, 0], pixels[-1, -1] = 1, 0
    rows: Patch = tuple(tuple(float(value) for value in row) for row in pixels.tolist())
    bottom, right = (int(margin) for margin in generator.integers(0, 2, 2) * (height - side, width - side))
    return BadNets(target, rows, margin_bottom=bottom, margin_right=right)
