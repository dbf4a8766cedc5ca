"""Many small pictures on one sheet, each with a line of text below."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw

from guard.detection.superimpose import ValueRange

__all__ = ["as_pixels", "contact_sheet", "picture_png"]

_SIDE: Final = 96
_GAP: Final = 6
_LINE: Final = 14
_COLUMNS: Final = 10
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

Pixels = UInt8[np.ndarray, "h w 3"]


def as_pixels(
    image: Num[np.ndarray, "a b c"], *, layout: str, low: Sequence[float], high: Sequence[float]
) -> Pixels:
    """Return a model's input as a picture: its range becomes black to white, each channel by itself.

    Args:
        image: ``c h w`` or ``h w c``. One channel is gray, of more than three the first three are shown.
        layout: ``NCHW`` or ``NHWC``.
        low: Least value: one for all, or one for each channel.
        high: Greatest value, likewise.
    """
    axis = 0 if layout == "NCHW" else 2
    least, greatest = ValueRange(tuple(low), tuple(high), axis).bounds()
    share = (image.astype(np.float64) - least) / (np.asarray(greatest, np.float64) - least)
    shown = np.moveaxis(np.clip(np.nan_to_num(share), 0.0, 1.0), axis, -1)
    channels = shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1].repeat(3, axis=-1)
    return np.ascontiguousarray(np.rint(channels * 255.0).astype(np.uint8))


def contact_sheet(pictures: Sequence[Pixels], captions: Sequence[str]) -> bytes:
    """Return a sheet as the content of a PNG file; the same input gives the same bytes.

    Args:
        pictures: At least one; small ones are shown larger, pixel by pixel.
        captions: One for each, in ASCII.
    """
    columns = min(len(pictures), _COLUMNS)
    rows = math.ceil(len(pictures) / columns)
    width, height = _SIDE + _GAP, _SIDE + _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _WHITE)
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = _GAP + column * width, _GAP + row * height
        sheet.paste(_tile(pixels), (left, top))
        pen.text((left, top + _SIDE + 1), caption, fill=_BLACK)
    return _png(sheet)


def picture_png(pixels: Pixels) -> bytes:
    """Return one picture, pixel by pixel, as the content of a PNG file."""
    return _png(Image.fromarray(pixels))


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _tile(pixels: Pixels) -> Image.Image:
    """Return a picture as large as fits into a tile."""
    picture = Image.fromarray(pixels)
    scale = _SIDE / max(picture.size)
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
