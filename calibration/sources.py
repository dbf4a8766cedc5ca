"""Find out what ``--data`` is, and read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from calibration.data import Geometry, ImageSet, fit_images, fit_labels
from calibration.errors import DataError, OptionError
from calibration.image_folder import read_image_folder
from guard.artifact.reader import NPY_ERRORS
from guard.errors import UnsafeArrayError

__all__ = ["read_images"]

_IMAGES, _LABELS = "images", "labels"


def read_images(data: Path, labels: Path | None, geometry: Geometry) -> ImageSet:
    """Read images, and labels where there are any.

    Args:
        data: A folder of image files, a folder holding ``images.npy`` (and ``labels.npy``), an ``.npz``
            with ``images`` (and ``labels``), or an ``.npy`` of images.
        labels: An ``.npy`` of class indices, in place of those that ``data`` may hold.
        geometry: What the model takes.

    Raises:
        DataError: If something cannot be read or does not fit.
        OptionError: If labels are given beside class folders.
        UnsafeArrayError: If an array holds pickled objects.
    """
    if data.is_dir() and not (data / "images.npy").is_file():
        return _with_labels(read_image_folder(data, geometry), labels)
    arrays = _read_arrays(data)
    images, digest = fit_images(arrays[_IMAGES], geometry, f"{data}: images")
    found = ImageSet(images, None, None, digest)
    if _LABELS in arrays:
        place = str(data / "labels.npy") if data.is_dir() else f"{data}: {_LABELS}"
        found = replace(found, labels=fit_labels(arrays[_LABELS], len(images), place), labels_from=place)
    return _with_labels(found, labels)


def _with_labels(images: ImageSet, labels: Path | None) -> ImageSet:
    if labels is None:
        return images
    if images.class_names is not None:
        raise OptionError(f"--labels {labels} was given, but class folders name the labels; leave one out")
    indices = fit_labels(_load(labels), len(images), str(labels))
    return replace(images, labels=indices, labels_from=str(labels))


def _read_arrays(data: Path) -> dict[str, np.ndarray]:
    if data.is_dir():
        names = [name for name in (_IMAGES, _LABELS) if (data / f"{name}.npy").is_file()]
        return {name: _load(data / f"{name}.npy") for name in names}
    if data.suffix == ".npy":
        return {_IMAGES: _load(data)}
    if data.suffix == ".npz":
        return _load_archive(data)
    problem = "is neither a folder nor" if data.exists() else "is not there; expected a folder,"
    raise DataError(f"--data {data} {problem} an .npz or .npy file of images")


def _load(path: Path) -> np.ndarray:
    if not path.exists():
        raise DataError(f"{path} is not there; expected an .npy file, check the path")
    if path.suffix != ".npy" or not path.is_file():
        raise DataError(f"{path} is no .npy file; save the array with numpy.save")
    try:
        array = np.load(path, allow_pickle=False)
    except NPY_ERRORS as error:
        raise _unreadable(str(path), error) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an .npz archive with the suffix .npy; rename it")
    return array


def _load_archive(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"--data {path} is not there; expected an .npz with the array 'images'")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if _IMAGES not in archive.files:
                held = ", ".join(map(repr, archive.files)) or "nothing"
                raise DataError(f"{path} holds {held}, expected the array 'images' (and 'labels')")
            return {name: archive[name] for name in (_IMAGES, _LABELS) if name in archive.files}
    except NPY_ERRORS as error:
        raise _unreadable(str(path), error) from error


def _unreadable(where: str, error: Exception) -> Exception:
    if "allow_pickle" in str(error):
        return UnsafeArrayError(
            f"{where} holds pickled Python objects, which can run code when read; save it again as a plain "
            f"numeric array"
        )
    return DataError(f"{where} cannot be read ({error}); save it again with numpy")
