"""Files that programs read in different ways, and the rows that each way makes of them.

Which way a program takes is told neither by files of the size that a model takes, nor by such as lie as they
are to be seen: whether it turns photographs as EXIF says, and whether it averages to make images smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8

from guard.arrays import Images
from guard.artifact import InputSpec, Preprocessing
from guard.pixels.declared import DeclaredImages
from guard.pixels.decoding import encode_png, encode_turned
from guard.pixels.resizing import Sizing
from guard.pixels.rows import stored_pixels

__all__ = ["SHRUNK", "TURNED", "Readings", "readings_of"]

TURNED: Final = "JPEG files that EXIF has turned"
SHRUNK: Final = "PNG files that become smaller"

_UPSIDE_DOWN: Final = 3  # of EXIF's orientations; keeps height and width
_TIMES: Final = 4
_MAX_PIXELS: Final = 2**26

_Pixels = UInt8[np.ndarray, "h w c"]


@dataclass(frozen=True, eq=False)
class Readings:
    """Some files.

    Attributes:
        what: What is particular about them.
        files: The files.
        declared: Rows as the preprocessing says.
        otherwise: Rows by each other way to read them.
    """

    what: str
    files: Sequence[bytes]
    declared: Images
    otherwise: tuple[Images, ...]


def readings_of(images: Images, record: Preprocessing, source: InputSpec) -> list[Readings]:
    """Return files that a program may read otherwise than ``record`` says.

    Args:
        images: Rows of the model's input, at least one.
        record: Preprocessing.
        source: The model's input.

    Raises:
        InvalidRequestError: If what is declared makes no rows of the files.
    """
    made = [_turned([*stored_pixels(images, record, source), _ramp(source)], record, source)]
    if record.resize is not None:
        made.append(_shrunk(Sizing(record.resize).resized(source.size), record, source))
    return made


def _turned(pixels: Sequence[_Pixels], record: Preprocessing, source: InputSpec) -> Readings:
    files = [encode_turned(one, _UPSIDE_DOWN) for one in pixels]
    other = "ignore" if record.orientation == "apply" else "apply"
    otherwise = _rows(files, record.model_copy(update={"orientation": other}), source)
    return Readings(TURNED, files, _rows(files, record, source), (otherwise,))


def _shrunk(size: tuple[int, int], record: Preprocessing, source: InputSpec) -> Readings:
    """Return noise, which averaging makes grey and leaving out does not."""
    shape = (_TIMES * size[0], _TIMES * size[1], source.channels)
    large = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    wide = large.astype(np.float64)
    middle = np.mean([wide[y::_TIMES, x::_TIMES] for y in (1, 2) for x in (1, 2)], axis=0)
    left_out = (large[::_TIMES, ::_TIMES], large[2::_TIMES, 2::_TIMES], np.rint(middle).astype(np.uint8))
    otherwise = tuple(_rows([encode_png(one)], record, source) for one in left_out)
    files = [encode_png(large)]
    return Readings(SHRUNK, files, _rows(files, record, source), otherwise)


def _rows(files: Sequence[bytes], record: Preprocessing, source: InputSpec) -> Images:
    declared = DeclaredImages(record, source, _MAX_PIXELS, plain=True)
    return np.stack([declared.row(file, "a file made to ask a model server") for file in files])


def _ramp(source: InputSpec) -> _Pixels:
    """Return an image that is dark above and bright below."""
    height, width = source.size
    column = np.linspace(0, 255, height).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(column[:, None, None], (height, width, source.channels)))
