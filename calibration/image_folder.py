"""Read a folder of image files with Pillow: one sub-folder a class, or all in one folder.

Files are taken in sorted order, hidden ones and other kinds of files are passed over. Pixels are
taken as stored; nothing is rotated, cropped or colour-managed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from calibration.data import Geometry, ImageSet
from calibration.errors import DataError
from guard.pixels.decoding import GRAY_MODES, pixels_of, target_mode

__all__ = ["SUFFIXES", "read_image_folder"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")

_READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image_folder(folder: Path, geometry: Geometry) -> ImageSet:
    """Read every image of a folder.

    With sub-folders, each is a class: its label is its name where all names are whole numbers, else its
    place in the sorted list of names. Without, there are no labels.

    Args:
        folder: The folder.
        geometry: What the model takes.

    Raises:
        DataError: If there are no images, files beside class folders, a file that cannot be read, or one
            that does not fit the model; the file is named.
    """
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry))
    loose = _image_files(folder)
    if classes and loose:
        raise DataError(
            f"{folder} holds class folders such as {classes[0].name!r} and loose images such as "
            f"{loose[0].name!r}, expected one or the other; move the images into their class folders"
        )
    _refuse_deeper(folder, classes)
    groups = [_image_files(entry) for entry in classes] or [loose]
    files = [file for group in groups for file in group]
    if not files:
        raise DataError(f"{folder} holds no images; expected files ending in {', '.join(SUFFIXES)}")
    images, digest, n_gray = _read_files(files, geometry)
    labels = np.repeat(_class_indices(classes), [len(group) for group in groups]) if classes else None
    names = tuple(entry.name for entry in classes) if classes else None
    notes = (
        (f"{n_gray} of {len(files)} files are grayscale; their channel was repeated to 3",) if n_gray else ()
    )
    labels_from = f"{folder}: sub-folders as classes" if classes else ""
    return ImageSet(images, labels, names, digest, notes, labels_from)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _refuse_deeper(folder: Path, classes: Sequence[Path]) -> None:
    """Refuse images that lie deeper than in class folders: they would be left out, or all of them missed.

    Raises:
        DataError: Naming the first such folder.
    """
    for entry in classes:
        for deeper in sorted(one for one in entry.iterdir() if one.is_dir() and not _is_hidden(one)):
            if _image_files(deeper):
                raise DataError(
                    f"{folder} holds images in {deeper.relative_to(folder)}, deeper than its class folders; "
                    f"give the folder whose sub-folders are the classes, such as {entry}"
                )


def _image_files(folder: Path) -> list[Path]:
    files = (entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
    return sorted(entry for entry in files if not _is_hidden(entry) and entry.is_file())


def _class_indices(classes: Sequence[Path]) -> Int64[np.ndarray, " k"]:
    names = [entry.name for entry in classes]
    numbered = all(name.isascii() and name.isdecimal() for name in names)
    return np.array([int(name) for name in names] if numbered else range(len(names)), np.int64)


def _read_files(files: Sequence[Path], geometry: Geometry) -> tuple[UInt8[np.ndarray, "n h w c"], str, int]:
    images = np.empty((len(files), *geometry.size, geometry.channels), np.uint8)
    digest, n_gray = hashlib.sha256(), 0
    for row, file in enumerate(files):
        image, gray = _read_file(file, geometry.channels)
        digest.update(f"{image.shape}\n".encode() + image.tobytes())
        images[row] = geometry.fitted(image, str(file))
        n_gray += gray and geometry.channels == 3
    return images, digest.hexdigest(), n_gray


def _read_file(file: Path, channels: int) -> tuple[UInt8[np.ndarray, "h w c"], bool]:
    try:
        with Image.open(file) as image:
            mode = _target_mode(image.mode, channels, file)
            pixels = pixels_of(image, mode, channels)
            gray = image.mode in GRAY_MODES
    except _READ_ERRORS as error:
        raise DataError(f"{file} cannot be read as an image ({error}); replace it or take it out") from error
    return pixels, gray


def _target_mode(mode: str, channels: int, file: Path) -> str:
    target = target_mode(mode, channels)
    if target is not None:
        return target
    raise DataError(
        f"{file} is an image of mode {mode}, the model takes {channels} channel(s) of 8 bits; convert the "
        f"files to {'grayscale' if channels == 1 else 'RGB' if channels == 3 else 'RGBA'}"
    )
