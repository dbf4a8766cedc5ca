"""Parts the clean images: those to repair and scan with, those to judge by, those to calibrate with.

The parts are drawn uniformly at random, so that those left for calibration are as independent draws of the
clean inputs as all were; no label or prediction takes part. What the network learned from never sets its
boundary, and an image of the first part that equals one of the others is left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from calibration.data import ImageSet
from calibration.detector_choice import LEAST_TO_FIT
from calibration.errors import TooFewImagesError
from calibration.heal.subject import Check
from calibration.threshold import minimum_images

__all__ = [
    "CALIBRATE",
    "JUDGE",
    "LEARN",
    "Parts",
    "least_to_calibrate",
    "order_of",
    "part_images",
    "write_images",
]

LEARN, JUDGE, CALIBRATE = "learn.npz", "judge.npz", "calibrate.npz"

LEAST_TO_LEARN, LEAST_TO_JUDGE = 40, 20

LEARN_SHARE = 1 / 3
"""Of the images, those to learn from that more are taken from only for a guarantee. From what is above it the
calibration gets as many as the fused detector takes, so that what is healed is not watched by less."""


@dataclass(frozen=True)
class Parts:
    """Rows of three sets of images, each rising; no two share an image.

    Attributes:
        learn: To scan with and to repair with.
        judge: To judge by; none if other images are given for that.
        calibrate: For overlays and boundary.
        copies: Images left out of ``learn``, since they equal one of another part, or one to judge by.
    """

    learn: Int64[np.ndarray, " l"]
    judge: Int64[np.ndarray, " j"]
    calibrate: Int64[np.ndarray, " c"]
    copies: int


def least_to_calibrate(check: Check) -> int:
    """Return how many images the check's guarantee takes, overlays included."""
    frr = check.frr if check.block_frr is None else check.block_frr
    least = minimum_images(frr, 1 - check.confidence) if check.threshold == "conformal" else 2
    return least + check.overlays


def part_images(
    images: ImageSet,
    check: Check,
    *,
    calibrate_share: float,
    judge_share: float,
    seed: int,
    where: str,
    apart: ImageSet | None = None,
) -> Parts:
    """Part images.

    Args:
        images: All.
        check: Says how many the calibration cannot do without.
        calibrate_share: Share to calibrate with; more where that is too few for the guarantee, or for the
            detector that is asked for, as long as a third of all is left to learn from.
        judge_share: Share to judge by; 0 for none.
        seed: Of the draw.
        where: Name of the images, for errors.
        apart: Images to judge by, where they are given; none that equals one of them is learned from.

    Raises:
        TooFewImagesError: If one part would be too small, copies left out.
    """
    count, least = len(images), least_to_calibrate(check)
    judge = max(LEAST_TO_JUDGE, round(judge_share * count)) if judge_share else 0
    calibrate = max(least, round(calibrate_share * count))
    if check.detector != "strip" and LEARN_SHARE * count <= count - judge - least - LEAST_TO_FIT:
        calibrate = max(calibrate, least + LEAST_TO_FIT)
    needed = calibrate + judge + LEAST_TO_LEARN
    if needed > count:
        raise TooFewImagesError(
            f"{where} holds {count} images, expected at least {needed}: {calibrate} to "
            f"calibrate ({least} at least for a false-rejection rate of {check.frr:g} with N = "
            f"{check.overlays}), {judge} to judge by, {LEAST_TO_LEARN} to repair with; add images, raise "
            f"--frr, or lower --overlays or the shares",
            needed=needed,
            got=count,
        )
    order = order_of(count, seed)
    held, learn = order[: calibrate + judge], order[calibrate + judge :]
    digests = _digests(images)
    kept_from_learning = digests[held] if apart is None else np.concatenate([digests[held], _digests(apart)])
    copies = np.isin(digests[learn], kept_from_learning)
    left = int((~copies).sum())
    if left < LEAST_TO_LEARN:
        raise TooFewImagesError(
            f"{where} leaves {left} images to repair with, expected at least {LEAST_TO_LEARN}: "
            f"{copies.sum()} others equal images that are judged by or calibrated with; add other images",
            needed=LEAST_TO_LEARN,
            got=left,
        )
    return Parts(
        np.sort(learn[~copies]), np.sort(held[calibrate:]), np.sort(held[:calibrate]), int(copies.sum())
    )


def order_of(count: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Return the order in which images are dealt out: to calibrate, to judge, and the rest to learn from."""
    return np.random.default_rng(seed).permutation(count)


def _digests(images: ImageSet) -> np.ndarray:
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images.images])


def write_images(images: ImageSet, rows: Int64[np.ndarray, " m"], path: Path) -> None:
    """Write some images, and their labels where there are any, as ``--data`` takes them."""
    labels = {} if images.labels is None else {"labels": images.labels[rows]}
    np.savez(path, images=images.images[rows], **labels)
