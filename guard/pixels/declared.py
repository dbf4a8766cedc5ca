"""How encoded images become rows of one model's input, as its artifact or the operator declares it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from guard.arrays import Images
from guard.artifact import InputSpec, Preprocessing
from guard.errors import InvalidRequestError
from guard.pixels.decoding import decode_image, encode_png
from guard.pixels.resizing import Sizing
from guard.pixels.rows import model_rows, stored_pixels

__all__ = ["DeclaredImages"]


@dataclass(frozen=True)
class DeclaredImages:
    """Makes rows of encoded images; pure, and as slow as decoding is.

    Attributes:
        record: Preprocessing.
        source: The model's input.
        max_pixels: Most pixels of an image, as it is declared and as it is resized.
        plain: Whether images are refused that other programs decode differently.
    """

    record: Preprocessing
    source: InputSpec
    max_pixels: int
    plain: bool = False

    def row(self, blob: bytes, where: str) -> Num[np.ndarray, "..."]:
        """Return one encoded image as the model takes it, without the batch axis.

        Args:
            blob: A JPEG or PNG file.
            where: Its name, for errors.

        Raises:
            InvalidRequestError: If it cannot be decoded, or is of a size that the model does not take.
        """
        pixels = decode_image(
            blob,
            where,
            channels=self.source.channels,
            max_pixels=self.max_pixels,
            upright=self.record.orientation == "apply",
            plain=self.plain,
        )
        sizing = Sizing(self.record.resize, self.record.crop)
        self._check_size((pixels.shape[0], pixels.shape[1]), sizing, where)
        row: np.ndarray = model_rows(sizing(pixels)[None], self.record, self.source)[0]
        return row

    def files(self, rows: Images) -> Sequence[bytes]:
        """Return PNG files of which rows like these are made, exactly where nothing has to be resized."""
        return [encode_png(pixels) for pixels in stored_pixels(rows, self.record, self.source)]

    def _check_size(self, size: tuple[int, int], sizing: Sizing, where: str) -> None:
        got, model = f"{size[0]} x {size[1]} pixels (height x width)", self.source.size
        if np.prod(sizing.resized(size), dtype=np.float64) > self.max_pixels:
            raise InvalidRequestError(
                f"{where} has {got}, and with the shorter side resized to {self.record.resize} more than "
                f"{self.max_pixels} in all; send an image of usual proportions"
            )
        result = sizing.result(size)
        if result is None:
            raise InvalidRequestError(
                f"{where} has {got}, too few to cut {self.record.crop} out of them; send a larger image"
            )
        if result != model or 0 in result:
            raise InvalidRequestError(
                f"{where} has {got}, and becomes {result[0]} x {result[1]}; expected {model[0]} x {model[1]} "
                f"as the model takes: send images of that size, or have the operator declare a resize"
            )
