"""Part the clean images into overlays and calibration images, so that the guarantee holds.

The guarantee asks that, given the overlays, the calibration images be independent draws of the clean
inputs that the model will meet. It holds when the overlays are drawn uniformly at random without
replacement: of n independent draws, those left over are still n − m independent draws of the same
distribution, and independent of the overlays. Two tempting refinements break it:

- *Overlays taken evenly from the classes.* Rare classes are then depleted, the calibration images have
  other class shares than the inputs, and the true false-rejection rate of a rare class that is rejected
  often can exceed the certified rate in nearly every calibration.
- *Images left out of calibration because they equal an overlay.* An image that occurs often among the
  inputs would be missing from the scores, although the server meets it and scores it against itself.
  Such copies stay, and are counted for the report.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num

from calibration.errors import TooFewImagesError

__all__ = ["Split", "split_images"]


@dataclass(frozen=True)
class Split:
    """Row numbers of two disjoint sets of rows; together they are all rows.

    Attributes:
        overlays: In the order drawn.
        calibration: Ascending.
        n_copies: Calibration images that equal an overlay, byte for byte; they are kept.
        n_repeats: Calibration images that equal an earlier one, byte for byte; they are kept.
    """

    overlays: Int64[np.ndarray, " m"]
    calibration: Int64[np.ndarray, " c"]
    n_copies: int
    n_repeats: int


def split_images(
    images: Num[np.ndarray, "n h w c"], n_overlays: int, generator: np.random.Generator
) -> Split:
    """Draw overlays uniformly at random without replacement; all the rest calibrates.

    Neither labels nor predictions nor pixels take part in the draw; the module's text says why.

    Args:
        images: All images, as stored.
        n_overlays: Number of overlays, below the number of images.
        generator: Source of the draw.

    Raises:
        TooFewImagesError: If there are not more images than overlays.

    Examples:
        >>> split = split_images(np.zeros((6, 2, 2, 1), np.uint8), 2, np.random.default_rng(0))
        >>> len(split.overlays), len(split.calibration), split.n_copies, split.n_repeats
        (2, 4, 4, 3)
    """
    if n_overlays >= len(images):
        raise TooFewImagesError(
            f"{len(images)} images cannot give {n_overlays} overlays and calibration images besides; "
            f"add images or lower --overlays",
            needed=n_overlays + 1,
            got=len(images),
        )
    shuffled = generator.permutation(len(images))
    overlays, calibration = shuffled[:n_overlays], np.sort(shuffled[n_overlays:])
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    return Split(
        overlays=overlays,
        calibration=calibration,
        n_copies=int(np.isin(digests[calibration], digests[overlays]).sum()),
        n_repeats=len(calibration) - len(np.unique(digests[calibration])),
    )
