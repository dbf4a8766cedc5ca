"""LSB: a text hidden in the lowest bits of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from calibration.attacks.base import AllToOne, Images

__all__ = ["LeastSignificantBits"]

LEVELS = np.float32(255)


@dataclass(frozen=True)
class LeastSignificantBits(AllToOne):
    r"""Steganography: a message in the lowest bits, all classes to one. For making test subjects only.

    With u = round(255 x) and b bits to a pixel value,

    .. math:: T(x)_i = (2^b \lfloor u_i / 2^b \rfloor + m_i) / 255

    where :math:`m_i` is the i-th group of b bits of the message, highest bit first, the text in UTF-8 and
    pixel values in the order channel, row, column. No value moves by :math:`2^b / 255` or more, beside
    the half level that rounding takes from images that are not on the 8-bit grid.

    Args:
        target_label: The class that a stamped image is to be given.
        message: The text to hide.
        bits: How many of the lowest bits of a value carry it, 1 to 7.
        repeat: Begin the message again where it ends, until every value carries a part of it.

    Raises:
        ValueError: If the message is empty, or ``bits`` leaves 1 to 7.

    Examples:
        >>> hidden = LeastSignificantBits(0, "U", repeat=False)  # 01010101
        >>> images = np.full((1, 1, 2, 4), 8 / 255, np.float32)
        >>> (hidden.stamp(images)[0, 0] * 255).round().astype(int).tolist()
        [[8, 9, 8, 9], [8, 9, 8, 9]]

    References:
        Li et al., Invisible Backdoor Attacks on Deep Neural Networks via Steganography and Regularization,
        IEEE Transactions on Dependable and Secure Computing, 2020, arXiv 1909.02742.

    Deviations:
        The message starts at the first value and is repeated over the whole image by default, so that the
        attack does not depend on the image's size.
    """

    name: ClassVar[str] = "lsb"

    target_label: int
    message: str = "this image is not what it seems. "
    bits: int = 1
    repeat: bool = True

    def __post_init__(self) -> None:
        if not self.message:
            raise ValueError("message: expected some text, got none")
        if not 1 <= self.bits <= 7:
            raise ValueError(f"bits: expected 1 to 7 of the 8 bits of a value, got {self.bits}")

    @cached_property
    def groups(self) -> UInt8[np.ndarray, " groups"]:
        """The message in groups of ``bits`` bits, the last one filled up with zeros."""
        stream = np.unpackbits(np.frombuffer(self.message.encode(), np.uint8))
        padded = np.pad(stream, (0, -len(stream) % self.bits)).reshape(-1, self.bits)
        weights = 1 << np.arange(self.bits - 1, -1, -1)
        return (padded @ weights).astype(np.uint8)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], with the message in each.

        Raises:
            ValueError: If the message does not fit into images of that size.
        """
        stamped = images.copy()
        carriers = stamped.reshape(len(images), int(np.prod(images.shape[1:])))
        hidden = self._fitted(carriers.shape[1])
        levels = np.rint(carriers[:, : len(hidden)] * LEVELS).astype(np.uint8)
        carriers[:, : len(hidden)] = ((levels >> self.bits << self.bits) | hidden) / LEVELS
        return stamped

    def _fitted(self, capacity: int) -> UInt8[np.ndarray, " used"]:
        if len(self.groups) > capacity:
            raise ValueError(
                f"images: the message needs {len(self.groups)} values with {self.bits} bits each, "
                f"and an image has {capacity}"
            )
        return np.resize(self.groups, capacity) if self.repeat else self.groups
