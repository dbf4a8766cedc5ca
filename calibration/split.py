"""Part the clean images into overlays and calibration images, so that the guarantee holds.

The guarantee asks that, given the overlays, the calibration images be independent draws of the clean
inputs that the model will meet. It holds when the overlays are drawn uniformly at random without
replacement: of n independent draws, those left over are still n − m independent draws of the same
distribution, and independent of the overlays. Two tempting refinements break it:

- *Overlays taken evenly from the classes of all images.* Rare classes are then depleted, the calibration
  images have other class shares than the inputs, and the true false-rejection rate of a rare class that is
  rejected often can exceed the certified rate in nearly every calibration. So where overlays are to be even,
  a *pool* is drawn uniformly first, and overlays are picked from it in any way: what is left of the pool
  never calibrates, and serves to fit what else the detector needs.
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
    """Row numbers of disjoint sets of rows; together they are all rows.

    Attributes:
        overlays: In the order drawn.
        fit: To fit a detector on, ascending; often none.
        calibration: Ascending.
        n_copies: Calibration images that equal an overlay, byte for byte; they are kept.
        n_repeats: Calibration images that equal an earlier one, byte for byte; they are kept.
    """

    overlays: Int64[np.ndarray, " m"]
    fit: Int64[np.ndarray, " f"]
    calibration: Int64[np.ndarray, " c"]
    n_copies: int
    n_repeats: int


def split_images(
    images: Num[np.ndarray, "n h w c"],
    n_overlays: int,
    generator: np.random.Generator,
    *,
    n_fit: int = 0,
    predicted: Int64[np.ndarray, " n"] | None = None,
) -> Split:
    """Draw a pool of overlays and images to fit on uniformly at random; all the rest calibrates.

    Neither labels nor predictions nor pixels take part in the draw of the pool; the module's text says why.

    Args:
        images: All images, as stored.
        n_overlays: Number of overlays, below the number of images.
        generator: Source of the draw.
        n_fit: Images to fit on.
        predicted: Class of each image, over which overlays are then taken from the pool as evenly as it
            allows; None to take them at random.

    Raises:
        TooFewImagesError: If no image would be left to calibrate.

    Examples:
        >>> split = split_images(np.zeros((6, 2, 2, 1), np.uint8), 2, np.random.default_rng(0))
        >>> len(split.overlays), len(split.calibration), split.n_copies, split.n_repeats
        (2, 4, 4, 3)
    """
    if n_overlays + n_fit >= len(images):
        raise TooFewImagesError(
            f"{len(images)} images cannot give {n_overlays} overlays{_and_fit(n_fit)} and calibration images "
            f"besides; add images or lower --overlays",
            needed=n_overlays + n_fit + 1,
            got=len(images),
        )
    shuffled = generator.permutation(len(images))
    pool, calibration = shuffled[: n_overlays + n_fit], np.sort(shuffled[n_overlays + n_fit :])
    if predicted is not None:
        pool = pool[_evenly(predicted[pool])]
    overlays, fit = pool[:n_overlays], np.sort(pool[n_overlays:])
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    return Split(
        overlays=overlays,
        fit=fit,
        calibration=calibration,
        n_copies=int(np.isin(digests[calibration], digests[overlays]).sum()),
        n_repeats=len(calibration) - len(np.unique(digests[calibration])),
    )


def _evenly(classes: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Return an order in which one of each class comes first, then a second of each, as far as they go."""
    turn = np.empty(len(classes), np.int64)
    for one in np.unique(classes):
        own = np.flatnonzero(classes == one)
        turn[own] = np.arange(len(own))
    return np.argsort(turn, kind="stable")


def _and_fit(n_fit: int) -> str:
    return f", {n_fit} images to fit the detector on" if n_fit else ""
