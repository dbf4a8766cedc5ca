"""Clean images and labels as they lie on disk: a folder of files, an ``.npz``, or ``.npy`` arrays.

Whatever the source, they become one array, channels last, in the order of the source and in its own
values: uint8 stays uint8, floats become float32. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num

from calibration.errors import DataError
from guard.pixels.resizing import Sizing, resize_image

__all__ = ["Geometry", "ImageSet", "digest_of", "fit_images", "fit_labels", "size_error"]


@dataclass(frozen=True)
class Geometry:
    """What the model asks of an image, whatever its values.

    Attributes:
        channels: Number of channels.
        size: Height and width.
        channels_first: Whether the model takes channels first; tells ambiguous arrays apart.
        resize: Whether images of another size are resized rather than refused.
        sizing: How they are resized and cropped, where that is told; else to the model's size.
        advice: What to do about images of another size, where it is not for the caller to size them.
    """

    channels: int
    size: tuple[int, int]
    channels_first: bool
    resize: bool
    sizing: Sizing | None = None
    advice: str | None = None

    def fitted(self, image: Num[np.ndarray, "h w c"], where: str) -> Num[np.ndarray, "th tw c"]:
        """Return an image in the size that the model takes.

        Args:
            image: uint8 or float32, channels last.
            where: Its name, for errors.

        Raises:
            DataError: If it has another size and is not to be resized, or does not come to the model's.
        """
        got = (image.shape[0], image.shape[1])
        if self.sizing is None:
            if got != self.size and not self.resize:
                raise size_error(where, got, self.size, self.advice)
            return resize_image(image, self.size)
        result = self.sizing.result(got)
        if result != self.size:
            became = (
                "too small to crop" if result is None else f"resized and cropped to {result[0]} x {result[1]}"
            )
            raise DataError(
                f"{where}: images are {got[0]} x {got[1]} (height x width) and {became}, the model takes "
                f"{self.size[0]} x {self.size[1]}; {self.advice or 'change --resize or --crop'}"
            )
        return self.sizing(image)


@dataclass(frozen=True)
class ImageSet:
    """Clean images, as many as were read, in reading order.

    Attributes:
        images: uint8 or float32, channels last, in the size the model takes.
        labels: Class index of each image, or None.
        class_names: Names of the classes, where sub-folders gave them.
        digest: SHA-256 of the images as read, before any resizing.
        notes: What a reader should know of how they were read.
        labels_from: File or folder that the labels are from, for errors; empty if there are none.
    """

    images: Num[np.ndarray, "n h w c"]
    labels: Int64[np.ndarray, " n"] | None
    class_names: tuple[str, ...] | None
    digest: str
    notes: tuple[str, ...] = ()
    labels_from: str = ""

    def __len__(self) -> int:
        return len(self.images)


def fit_images(array: np.ndarray, geometry: Geometry, where: str) -> tuple[Num[np.ndarray, "n h w c"], str]:
    """Bring a stored array to channels last and the model's size; return it with the digest of the original.

    Args:
        array: ``n h w c``, ``n c h w`` or ``n h w``; uint8 or floating.
        geometry: What the model takes.
        where: Name of the array, for errors.

    Raises:
        DataError: If dtype, channels, size or values do not fit.
    """
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{where} holds {array.dtype}, expected uint8 (0 to 255) or floating-point images; convert it "
            f"with .astype"
        )
    if len(array) == 0:
        raise DataError(f"{where} holds no images (shape {array.shape})")
    digest = digest_of(array)
    images = _channels_last(array, geometry, where)
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as such
            images = images.astype(np.float32)
        _refuse_non_finite(images, where)
    return _fit_size(images, geometry, where), digest


def fit_labels(array: np.ndarray, n_images: int, where: str) -> Int64[np.ndarray, " n"]:
    """Return stored labels as class indices, one for each image.

    Raises:
        DataError: If they are no integers, negative, or not as many as the images.
    """
    labels = array.reshape(len(array)) if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where} has shape {array.shape} of {array.dtype}, expected one integer class index an image"
        )
    if len(labels) != n_images:
        raise DataError(f"{where} has {len(labels)} labels for {n_images} images, expected one for each")
    if labels.min(initial=0) < 0:
        raise DataError(f"{where}: label {labels.min()} is negative, expected class indices from 0")
    most = np.iinfo(np.int64).max
    if labels.max(initial=0) > most:  # as 64 bits with a sign it would be a negative one
        raise DataError(f"{where}: label {labels.max()} is beyond {most}, expected class indices from 0")
    return labels.astype(np.int64)


def digest_of(images: np.ndarray) -> str:
    """Return the SHA-256 of an array of images: dtype, shape and values."""
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}\n".encode())
    digest.update(np.ascontiguousarray(images).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def size_error(
    where: str, got: tuple[int, int], wanted: tuple[int, int], advice: str | None = None
) -> DataError:
    """Return the error for images of another size than the model's."""
    return DataError(
        f"{where}: images are {got[0]} x {got[1]} (height x width), the model takes "
        f"{wanted[0]} x {wanted[1]}; {advice or f'pass --resize {wanted[0]} {wanted[1]} to resize them'}"
    )


def _channels_last(array: np.ndarray, geometry: Geometry, where: str) -> Num[np.ndarray, "n h w c"]:
    if array.ndim == 3 and geometry.channels == 1:
        return array[..., np.newaxis]
    if array.ndim not in {3, 4}:
        raise DataError(f"{where} has shape {array.shape}, expected n h w c, n c h w or n h w")
    first = array.ndim == 4 and array.shape[1] == geometry.channels
    last = array.ndim == 4 and array.shape[3] == geometry.channels
    if first and last:
        first = _reads_channels_first(array.shape, geometry, where)
    elif not first and not last:
        raise DataError(
            f"{where} has shape {array.shape}, but the model takes images of {geometry.channels} channel(s); "
            f"convert the images to that many channels"
        )
    return np.moveaxis(array, 1, 3) if first else array


def _reads_channels_first(shape: tuple[int, ...], geometry: Geometry, where: str) -> bool:
    fits_first, fits_last = shape[2:] == geometry.size, shape[1:3] == geometry.size
    if fits_first and fits_last:
        return geometry.channels_first
    if not fits_first and not fits_last:
        raise DataError(
            f"{where} has shape {shape}, which reads as n h w c and as n c h w, and in neither way are the "
            f"images {geometry.size[0]} x {geometry.size[1]} as the model takes them; store them in that size"
        )
    return fits_first


def _refuse_non_finite(images: Num[np.ndarray, "n h w c"], where: str) -> None:
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{where}: image {int(finite.argmin())} holds NaN or infinite values, and so do "
            f"{int((~finite).sum())} of {len(images)}; leave them out"
        )


def _fit_size(
    images: Num[np.ndarray, "n h w c"], geometry: Geometry, where: str
) -> Num[np.ndarray, "n th tw c"]:
    if (images.shape[1], images.shape[2]) == geometry.size:  # an array of that size is resized already
        return np.ascontiguousarray(images)
    return np.stack([geometry.fitted(image, where) for image in images])
