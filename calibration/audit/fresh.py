"""Fresh images, prepared as the profile says, and what can be told of whether they are fresh.

A boundary rejects few of the images that it was set on, whatever the model meets later, so those prove
nothing. Of them an artifact keeps the digest of the whole set, its N overlays, which were drawn from it, and
the images of its probe. No other can be recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from calibration.audit.options import FrrOptions
from calibration.data import Geometry, ImageSet
from calibration.errors import DataError
from calibration.outputs import check_labels
from calibration.scoring import batch_size
from calibration.sources import read_images
from guard.arrays import Images
from guard.artifact import Artifact, Profile
from guard.pixels.resizing import Sizing
from guard.pixels.rows import model_rows

__all__ = ["Fresh", "read_fresh"]

_NAMED: Final = 5
_FAR: Final = 16
"""Images that span less than a sixteenth of what those of the calibration could are of another scale."""


@dataclass(frozen=True, eq=False)
class Fresh:
    """Images to audit with.

    Attributes:
        images: All that were read.
        profile: Says how they are prepared.
        checkable: Which have only values that the model was calibrated for; the others are never checked.
        kept: Images of the calibration that the artifact keeps, none of which is among these.
        repeats: How many equal an earlier one.
    """

    images: ImageSet
    profile: Profile
    checkable: Bool[np.ndarray, " n"]
    kept: int
    repeats: int

    def prepare(self, stored: np.ndarray) -> Images:
        """Return stored images as the model takes them, preprocessed as at calibration."""
        return _rows(stored, self.profile)

    @property
    def batch(self) -> int:
        """Model inputs in one call."""
        return batch_size(_rows(self.images.images[:1], self.profile).astype(np.float32).nbytes)


def read_fresh(artifact: Artifact, options: FrrOptions) -> Fresh:
    """Read the images, and refuse those that prove nothing.

    Raises:
        DataError: If they are stored otherwise than those of the calibration, cannot be checked, or are
            images of the calibration as far as can be told.
        GuardError: If they cannot be read.
    """
    profile, where = artifact.profile, options.data
    images = read_images(where, options.labels, _geometry(profile))
    if images.digest == profile.calibration.data_sha256:
        raise DataError(
            f"--data {where}: these are the very images that the artifact was calibrated with (SHA-256 "
            f"{images.digest[:12]}…), few of which its boundary rejects whatever it is worth; give fresh ones"
        )
    check_labels(images, profile.output.classes)
    if profile.preprocessing.eight_bit and images.images.dtype != np.uint8:
        raise DataError(
            f"--data {where} holds {images.images.dtype} images, and the artifact was calibrated with uint8, "
            f"0 to 255, which it multiplies by {profile.preprocessing.scale:.6g}; store them alike"
        )
    return _seen(images, artifact, where)


def _seen(images: ImageSet, artifact: Artifact, where: Path) -> Fresh:
    """Look at every image as the model takes it: is it known, does it fit?"""
    profile, kept, copies = artifact.profile, _kept(artifact), list[int]()
    low, high = profile.input.value_range.tolerated()
    fits, least, most, earlier = [], np.inf, -np.inf, set[bytes]()
    for start, rows in _batches(images, profile):
        fits.append(((rows >= low) & (rows <= high)).reshape(len(rows), -1).all(axis=1))
        least, most = min(least, float(rows.min())), max(most, float(rows.max()))
        keys = [_key(row) for row in rows]
        copies += [start + place for place, key in enumerate(keys) if key in kept]
        earlier.update(keys)
    if copies:
        raise _copied(copies, len(kept), artifact, where)
    fresh = Fresh(images, profile, np.concatenate(fits), len(kept), len(images) - len(earlier))
    _refuse_another_scale(fresh, least, most, where)
    return fresh


def _kept(artifact: Artifact) -> set[bytes]:
    probed = () if artifact.probe is None else artifact.probe.images
    return {_key(image) for images in (artifact.overlays, probed) for image in images}


def _key(row: np.ndarray) -> bytes:
    return hashlib.sha256(row.tobytes()).digest()


def _copied(copies: list[int], kept: int, artifact: Artifact, where: Path) -> DataError:
    several = len(copies) > 1
    named = ", ".join(map(str, copies[:_NAMED])) + (", …" if len(copies) > _NAMED else "")
    return DataError(
        f"--data {where}: image{'s' if several else ''} {named} ({len(copies)} in all) "
        f"{'are' if several else 'is'} among the {kept} images that the artifact keeps of the "
        f"{artifact.profile.calibration.n_images} it was calibrated with, so others of those are probably "
        f"here too, and a boundary is not audited on images that it was set on; give fresh ones, or, if "
        f"{'these equal them' if several else 'this one equals it'} by chance, leave "
        f"{'them' if several else 'it'} out"
    )


def _refuse_another_scale(fresh: Fresh, least: float, most: float, where: Path) -> None:
    source = fresh.profile.input
    low, high = min(source.low), max(source.high)
    if not fresh.checkable.any():
        problem = "none of them can be checked"
    elif (most - least) * _FAR < high - low:
        problem = "they are of another scale"
    else:
        return
    raise DataError(
        f"--data {where}: the images become values from {least:.4g} to {most:.4g}, and the artifact was "
        f"calibrated for {low:.4g} to {high:.4g}, so {problem}; store them as those it was calibrated with"
    )


def _geometry(profile: Profile) -> Geometry:
    source, record = profile.input, profile.preprocessing
    sized = record.resize is not None or record.crop is not None
    return Geometry(
        channels=source.channels,
        size=source.size,
        channels_first=source.layout == "NCHW",
        resize=record.resize is not None,
        sizing=Sizing(record.resize, record.crop) if sized else None,
        advice="give them in the size that those of the calibration had",
    )


def _rows(stored: np.ndarray, profile: Profile) -> Images:
    return model_rows(stored, profile.preprocessing, profile.input)


def _batches(images: ImageSet, profile: Profile) -> Iterator[tuple[int, Images]]:
    for start in range(0, len(images), 256):
        yield start, _rows(images.images[start : start + 256], profile)
