"""The declared way from stored pixels to the model's input, and the value range it leads to.

What is done with a stored value is :mod:`guard.pixels.rows`, the code that serves. Clients must do the same,
so all of it goes into the profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Num

from calibration.errors import OptionError
from guard.arrays import Images
from guard.artifact import InputSpec, Preprocessing
from guard.artifact.signature import Signature
from guard.pixels.resizing import Sizing
from guard.pixels.rows import model_rows, transform

__all__ = ["Prepare", "StoredRange", "Transform", "plan_input"]


@dataclass(frozen=True)
class Transform:
    """What the user asked for; None where nothing was said.

    Attributes:
        scale: Factor on stored values.
        mean, std: One value for all channels, or one for each.
        resize: Height and width, or the shorter side alone.
        crop: Height and width of the middle that is kept then.
        colour: Order of colours that the model takes, of images stored as RGB.
        value_range: Smallest and largest stored value a client may send.
    """

    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    crop: tuple[int, int] | None = None
    colour: Literal["RGB", "BGR"] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images come to; None where that depends on them."""
        resize = self.resize if self.resize and len(self.resize) == 2 else None
        return self.crop or (None if resize is None else (resize[0], resize[1]))

    @property
    def sizing(self) -> Sizing | None:
        """How images are brought to that size; None where they are not."""
        return None if self.resize is None and self.crop is None else Sizing(self.resize, self.crop)

    def words(self) -> list[str]:
        """Return it as flags of a command.

        Examples:
            >>> Transform(mean=(0.5, 0.25), resize=(32, 48)).words()
            ['--mean', '0.5', '0.25', '--resize', '32', '48']
        """
        flags = {
            "--scale": () if self.scale is None else (self.scale,),
            "--mean": self.mean,
            "--std": self.std,
            "--resize": self.resize,
            "--crop": self.crop,
            "--colour": self.colour and (self.colour,),
            "--range": self.value_range,
        }
        return [str(word) for flag, values in flags.items() if values for word in (flag, *values)]


@dataclass(frozen=True)
class StoredRange:
    """Smallest and largest value that stored images may hold.

    Attributes:
        origin: Where the range comes from, in words.
        measured: Whether it is merely what these images happen to hold.
    """

    low: float
    high: float
    origin: str
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Prepare:
    """Turns stored images into rows of the model's input.

    Attributes:
        record: Scale, mean, std and resize, as the profile keeps them.
        source: The model's input with its value range.
        stored: Range of the stored values, from which the input's range follows.
    """

    record: Preprocessing
    source: InputSpec
    stored: StoredRange

    def __call__(self, images: Num[np.ndarray, "n h w c"]) -> Images:
        """Return the images as the model takes them.

        Args:
            images: Stored values, channels last, in the model's size.
        """
        return model_rows(images, self.record, self.source)


def plan_input(signature: Signature, images: Num[np.ndarray, "n h w c"], wish: Transform) -> Prepare:
    """Settle preprocessing and value range for these images and this model.

    uint8 images are divided by 255 for floating-point models and left alone for uint8 models; float
    images are left alone. A flag overrides each.

    Args:
        signature: The model's tensors.
        images: All images, as stored.
        wish: What the user asked for.

    Raises:
        OptionError: If a flag does not fit the model or the images.
    """
    stored_uint8 = images.dtype == np.uint8
    _check_fits(signature, stored_uint8, wish, channels=images.shape[3])
    to_unit = stored_uint8 and signature.datatype != "UINT8"
    record = Preprocessing(
        scale=wish.scale if wish.scale is not None else (1.0 / 255.0 if to_unit else 1.0),
        mean=wish.mean or (0.0,),
        std=wish.std or (1.0,),
        resize=wish.resize,
        crop=wish.crop,
        colour=wish.colour or "RGB",
        eight_bit=stored_uint8,
    )
    stored = _stored_range(images, wish)
    low, high = _input_range(stored, record, signature.datatype, channels=images.shape[3])
    source = InputSpec(
        name=signature.input_name,
        datatype=signature.datatype,
        shape=signature.shape,
        layout=signature.layout,
        low=low,
        high=high,
    )
    return Prepare(record, source, stored)


def _check_fits(signature: Signature, stored_uint8: bool, wish: Transform, channels: int) -> None:
    if signature.datatype == "UINT8" and not stored_uint8:
        raise OptionError(
            "the model takes uint8 images and the data holds floating-point ones; store them as uint8, "
            "0 to 255"
        )
    given = [flag for flag in ("scale", "mean", "std") if getattr(wish, flag) is not None]
    if signature.datatype == "UINT8" and given:
        raise OptionError(f"the model takes uint8 pixels as they are; leave out --{', --'.join(given)}")
    if wish.colour == "BGR" and channels != 3:
        raise OptionError(
            f"--colour BGR is for models of 3 channels, this one takes {channels}; leave it out"
        )
    for flag in ("mean", "std"):
        values = getattr(wish, flag)
        if values is not None and len(values) not in {1, channels}:
            raise OptionError(
                f"--{flag} has {len(values)} values, expected 1 or {channels}, one for each channel"
            )


def _stored_range(images: Num[np.ndarray, "n h w c"], wish: Transform) -> StoredRange:
    if images.dtype == np.uint8:
        if wish.value_range is not None:
            raise OptionError("--range is for floating-point images; 8-bit images range from 0 to 255")
        return StoredRange(0.0, 255.0, "8-bit pixels")
    low, high = float(images.min()), float(images.max())
    if wish.value_range is not None:
        return _declared_range(wish.value_range, low, high)
    if low >= 0.0 and high <= 1.0:
        return StoredRange(0.0, 1.0, "the images lie within 0 to 1")
    if low == high:
        raise OptionError(
            f"every pixel of every image is {low:g}; check the data, or declare --range LOW HIGH"
        )
    return StoredRange(low, high, "smallest and largest value in the images", measured=True)


def _declared_range(declared: tuple[float, float], low: float, high: float) -> StoredRange:
    if low < declared[0] or high > declared[1]:
        raise OptionError(
            f"--range {declared[0]:g} {declared[1]:g} was given, but the images hold values from {low:g} to "
            f"{high:g}; widen it"
        )
    return StoredRange(*declared, "declared by --range")


def _input_range(
    stored: StoredRange, record: Preprocessing, datatype: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Map the ends through the very same arithmetic, so that an image at the edge is inside."""
    dtype = np.uint8 if datatype == "UINT8" else np.float32
    ends = np.broadcast_to(
        np.array([stored.low, stored.high], dtype)[:, None, None, None], (2, 1, 1, channels)
    )
    with np.errstate(over="ignore"):
        mapped = np.sort(transform(ends, record, datatype).reshape(2, channels).astype(np.float64), axis=0)
    if not np.isfinite(mapped).all() or (mapped[0] >= mapped[1]).any():
        raise OptionError(
            f"stored values {stored} become {mapped[0].tolist()} to "
            f"{mapped[1].tolist()} in {datatype}, expected finite values and a range; change --scale, --mean "
            f"or --std"
        )
    low, high = (tuple(float(value) for value in end) for end in mapped)
    same = len(set(low)) == 1 and len(set(high)) == 1
    return (low[:1], high[:1]) if same else (low, high)
