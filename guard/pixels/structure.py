"""What a file is made of, as its own bytes say: told before it is decoded, and without decoding it. Pure."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

__all__ = ["png_is_whole", "scans_of"]

_START: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # of a marker; neither a stuffed FF nor a restart
_BARE: Final = frozenset({0x01, 0xD8})  # markers that no length follows
_SCAN: Final = 0xDA
_END: Final = 0xD9

_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by the colour type of a PNG
_PASSES: Final = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""Of an interlaced PNG: first column and row, and steps from one to the next."""


def scans_of(blob: bytes) -> int:
    """Return how many scans a JPEG holds; each may cost its decoder a pass over the whole image.

    Args:
        blob: The file. What follows the end of its first image is not looked at.
    """
    scans, at = 0, 0
    while (marker := _START.search(blob, at)) is not None:
        kind, at = marker[1][0], marker.end()
        if kind == _END:
            break
        scans += kind == _SCAN
        if kind not in _BARE:
            at += max(2, int.from_bytes(blob[at : at + 2], "big"))
    return scans


def png_is_whole(blob: bytes) -> bool:
    """Return whether a PNG holds data for all its rows; unpacks them, and keeps nothing.

    Args:
        blob: A file whose header was read, and whose checksums are right.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", blob, 16)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    bits, expected = _SAMPLES.get(colour, 4) * depth, 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    unpacker = zlib.decompressobj()
    for packed in _data_of(blob):
        left_over = packed
        while left_over and expected > 0:
            expected -= len(unpacker.decompress(left_over, 2**20))
            left_over = unpacker.unconsumed_tail
    return expected <= 0


def _data_of(blob: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(blob):
        length, name = struct.unpack_from(">I4s", blob, at)
        if name == b"IDAT":
            yield blob[at + 8 : at + 8 + length]
        at += 12 + length
