"""JPEG and PNG files of every kind that a client may send, made by Pillow and by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(size: tuple[int, int] = (8, 8), channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return random 8-bit pixels, height and width first."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def encoded(image: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Return a file of these pixels or this picture."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else picture(image)).save(file, form, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_declaring(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG of a few bytes that says it has that size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def turned(pixels: np.ndarray, orientation: int) -> bytes:
    """Return a JPEG of these pixels with an EXIF orientation."""
    return encoded(pixels, "JPEG", quality=95, exif=orientation_of(orientation))


def orientation_of(orientation: int) -> Image.Exif:
    """Return EXIF of nothing but an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def wire(elements: list[bytes]) -> bytes:
    """Return elements as raw contents of BYTES."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
