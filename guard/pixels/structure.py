"""What a file is made of, as its own bytes say: told before it is decoded, and without decoding it. Pure."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["scans_of"]

_START: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # of a marker; neither a stuffed FF nor a restart
_BARE: Final = frozenset({0x01, 0xD8})  # markers that no length follows
_SCAN: Final = 0xDA
_END: Final = 0xD9


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
