"""Quarantined inputs: what a client sent and the guard did not let through; evidence, never training data.

An ``.npz`` holds ``images``, (n, …) in the model's own layout and type, and may hold ``labels``, int64, the
class that the served model gave each (-1 where it is not known). A folder holds such files. Nothing is
unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from scipy import stats

from calibration.data import digest_of
from calibration.errors import DataError
from guard.arrays import HELD
from guard.artifact.reader import NPY_ERRORS
from guard.artifact.signature import Signature
from guard.errors import UnsafeArrayError

__all__ = ["UNKNOWN", "Suspects", "led_to", "read_suspects"]

UNKNOWN = -1
"""Label of an input whose answer was not kept."""

LARGEST_BYTES = 2**32
"""What one file's arrays may come to, unpacked: a small file of zeros can hold more than any memory."""

_CHANCE = 1e-3
"""That so many suspects are of one class by chance; with more no class stands out."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """Quarantined inputs.

    Attributes:
        images: As the model takes them, channels first, float32.
        labels: What the served model gave them; -1 where it is not known.
        digest: Of both.
        files: How many files they came from.
        left_out: How many hold NaN or infinite values, of which no model says anything; not among them.
    """

    images: Float32[np.ndarray, "n c h w"]
    labels: Int64[np.ndarray, " n"]
    digest: str
    files: int
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.images)


def read_suspects(path: Path, signature: Signature, classes: int) -> Suspects:
    """Read quarantined inputs.

    Args:
        path: An ``.npz``, or a folder of such.
        signature: Of the model that they were sent to.
        classes: k.

    Raises:
        DataError: If there are none, or they are not this model's inputs.
        UnsafeArrayError: If an array holds pickled objects.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"--suspects {path} holds no .npz file; give what guard quarantine export wrote")
    parts = [_read(file, signature, classes) for file in files]
    images = np.concatenate([each for each, _ in parts])
    labels = np.concatenate([each for _, each in parts])
    digest, finite = f"{digest_of(images)}{digest_of(labels)}", np.isfinite(images).all(axis=(1, 2, 3))
    images, labels = images[finite], labels[finite]
    if not len(images):
        raise DataError(f"--suspects {path} holds no images of finite values; leave it out")
    first = images if signature.layout == "NCHW" else images.transpose(0, 3, 1, 2)
    rows = np.ascontiguousarray(first, np.float32)
    return Suspects(rows, labels, digest, len(files), int((~finite).sum()))


def led_to(labels: Int64[np.ndarray, " n"], clean: Int64[np.ndarray, " m"], classes: int) -> int | None:
    """Return the class that suspects are led to: one that far more of them get than clean images do.

    Args:
        labels: What the model gives the suspects.
        clean: What it gives clean images.
        classes: k.

    Returns:
        None where no class stands out, as with a trigger that sends each class to another.

    Examples:
        >>> led_to(np.array([3] * 18 + [0, 1]), np.arange(40) % 5, 5)
        3
        >>> led_to(np.arange(20) % 5, np.arange(40) % 5, 5) is None
        True
    """
    counts = np.bincount(labels, minlength=classes)
    usual = (np.bincount(clean, minlength=classes) + 1) / (len(clean) + classes)
    chances = [
        stats.binomtest(int(count), len(labels), float(share), alternative="greater").pvalue
        for count, share in zip(counts, usual, strict=True)
    ]
    label = int(np.argmin(chances))
    return label if chances[label] * classes <= _CHANCE else None


def _read(path: Path, signature: Signature, classes: int) -> tuple[np.ndarray, Int64[np.ndarray, " n"]]:
    arrays = _arrays(path)
    if "images" not in arrays:
        held = ", ".join(arrays) or "nothing"
        raise DataError(f"--suspects {path} holds {held}, expected the array 'images'")
    images = arrays["images"]
    wanted = HELD[signature.datatype]
    if images.dtype != wanted or images.ndim != 4 or images.shape[1:] != signature.shape:
        raise DataError(
            f"--suspects {path}: images are {images.dtype} of shape {_shown(images.shape[1:])}, the model "
            f"takes {wanted} of {_shown(signature.shape)}; give inputs as clients sent them to this model"
        )
    labels = arrays.get("labels", np.full(len(images), UNKNOWN, np.int64))
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"--suspects {path}: labels are {labels.dtype} of shape {labels.shape}, expected one whole "
            f"number for each of {len(images)} images"
        )
    if len(labels) and not UNKNOWN <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"--suspects {path}: labels go from {labels.min()} to {labels.max()}, expected classes of the "
            f"model, 0 to {classes - 1}, or {UNKNOWN} where unknown"
        )
    return images, labels.astype(np.int64)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(
            f"--suspects {path} is not there; expected an .npz with 'images', or a folder of such"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            size = sum(member.file_size for member in stored.zip.infolist())
            if size > LARGEST_BYTES:
                raise DataError(
                    f"--suspects {path}: expected up to {LARGEST_BYTES} bytes of arrays, got {size}"
                )
            arrays = {name: stored[name] for name in ("images", "labels") if name in stored.files}
            if not all(isinstance(one, np.ndarray) for one in arrays.values()):
                raise ValueError("a member is no array")  # numpy hands such a one out as bytes
            return arrays
    except (*NPY_ERRORS, RuntimeError) as error:
        if "allow_pickle" in str(error):
            raise UnsafeArrayError(
                f"--suspects {path} holds pickled objects, which are never read"
            ) from error
        raise DataError(f"--suspects {path} cannot be read ({error}); export it again") from error


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
