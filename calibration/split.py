"""Part the clean images into overlays and calibration images that have nothing in common.

The guarantee asks that the calibration images be fresh draws of clean inputs, given the overlays.
Class by class they are. Their class *shares* move a little, because overlays are taken evenly from
the classes: by at most m / (n − m) in total variation, and not at all where the classes are even.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num

from calibration.errors import TooFewImagesError

__all__ = ["Split", "draw_overlays", "split_images"]


@dataclass(frozen=True)
class Split:
    """Row numbers of two disjoint sets of images.

    Attributes:
        overlays: In the order drawn.
        calibration: Ascending.
        n_copies_dropped: Images left out of both because they equal an overlay, byte for byte.
        n_repeats: Calibration images that equal an earlier one, byte for byte; they are kept.
        class_shift: Total-variation distance between the class shares of all images and of the
            calibration images; it adds to the certified rate at the most.
    """

    overlays: Int64[np.ndarray, " m"]
    calibration: Int64[np.ndarray, " c"]
    n_copies_dropped: int
    n_repeats: int
    class_shift: float


def split_images(
    images: Num[np.ndarray, "n h w c"],
    classes: Int64[np.ndarray, " n"],
    n_overlays: int,
    generator: np.random.Generator,
) -> Split:
    """Draw overlays evenly over the classes; the rest, without copies of overlays, calibrates.

    Args:
        images: All images, as stored.
        classes: Label of each image, or the model's prediction where there are no labels.
        n_overlays: Number of overlays, below the number of images.
        generator: Source of the draw.

    Raises:
        TooFewImagesError: If there are not more images than overlays.
    """
    if n_overlays >= len(images):
        raise TooFewImagesError(
            f"{len(images)} images cannot give {n_overlays} overlays and calibration images besides; "
            f"add images or lower --overlays",
            needed=n_overlays + 1,
            got=len(images),
        )
    overlays = draw_overlays(classes, n_overlays, generator)
    digests = np.array([hashlib.sha256(image.tobytes()).digest() for image in images], "S32")
    rest = np.setdiff1d(np.arange(len(images)), overlays)
    calibration = rest[~np.isin(digests[rest], digests[overlays])]
    return Split(
        overlays=overlays,
        calibration=calibration,
        n_copies_dropped=len(rest) - len(calibration),
        n_repeats=len(calibration) - len(np.unique(digests[calibration])),
        class_shift=_class_shift(classes, calibration),
    )


def draw_overlays(
    classes: Int64[np.ndarray, " n"], n_overlays: int, generator: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Return ``n_overlays`` rows, as evenly over the classes as the classes allow.

    Rows are dealt in turns, one from each class that has any left; which classes get the last turn, and
    which rows of a class are dealt, is random.

    Examples:
        >>> classes = np.array([0] * 90 + [1] * 9 + [2])
        >>> drawn = draw_overlays(classes, 7, np.random.default_rng(0))
        >>> np.bincount(classes[drawn]).tolist()
        [3, 3, 1]
    """
    shuffled = generator.permutation(len(classes))
    _, dealt = np.unique(classes[shuffled], return_inverse=True)
    priority = generator.permutation(dealt.max() + 1)
    order = np.lexsort((priority[dealt], _turns(dealt)))
    drawn: np.ndarray = shuffled[order[:n_overlays]]
    return drawn


def _turns(dealt: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return how many earlier rows are of the same class, for each row."""
    by_class = np.argsort(dealt, kind="stable")
    counts = np.bincount(dealt)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    turns = np.empty(len(dealt), np.int64)
    turns[by_class] = np.arange(len(dealt)) - starts
    return turns


def _class_shift(classes: Int64[np.ndarray, " n"], calibration: Int64[np.ndarray, " c"]) -> float:
    values = classes - classes.min()
    size = int(values.max()) + 1
    before = np.bincount(values, minlength=size) / len(values)
    after = np.bincount(values[calibration], minlength=size) / max(len(calibration), 1)
    return float(np.abs(before - after).sum() / 2)
