"""From stored pixels to rows of a model's input, and back where that is exact. Pure numpy.

A stored value v becomes ``(v * scale - mean) / std`` in float32, then the model's dtype, then its layout.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num, UInt8

from guard.arrays import Images, held
from guard.artifact import InputSpec, Preprocessing

__all__ = ["model_rows", "stored_pixels", "transform"]


def transform(images: Num[np.ndarray, "n h w c"], record: Preprocessing, datatype: str) -> np.ndarray:
    """Return stored values as the model's, channels last; colours in the model's order.

    Args:
        images: Stored values, colours as RGB.
        record: Scale, mean, std and colour order; a UINT8 model takes pixels as they are.
        datatype: V2 datatype of the model's input.
    """
    ordered = images[..., ::-1] if record.colour == "BGR" else images
    if datatype == "UINT8":
        return ordered
    mean, std = np.asarray(record.mean, np.float32), np.asarray(record.std, np.float32)
    values = (ordered.astype(np.float32) * np.float32(record.scale) - mean) / std
    return held(values, datatype)


def model_rows(images: Num[np.ndarray, "n h w c"], record: Preprocessing, source: InputSpec) -> Images:
    """Return stored images as the model takes them.

    Args:
        images: Stored values, channels last, in the model's size.
        record: How they are transformed.
        source: The model's input.
    """
    rows = transform(images, record, source.datatype)
    if source.layout == "NCHW":
        rows = rows.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows)


def stored_pixels(rows: Images, record: Preprocessing, source: InputSpec) -> UInt8[np.ndarray, "n h w c"]:
    """Return the 8-bit pixels of which :func:`model_rows` makes these rows, or those nearest to them.

    Args:
        rows: In the model's layout and dtype.
        record: How pixels were transformed.
        source: The model's input.
    """
    values = rows.transpose(0, 2, 3, 1) if source.layout == "NCHW" else rows
    if source.datatype != "UINT8":
        mean, std = np.asarray(record.mean, np.float64), np.asarray(record.std, np.float64)
        values = np.rint((values.astype(np.float64) * std + mean) / record.scale).clip(0, 255)
    ordered = values[..., ::-1] if record.colour == "BGR" else values
    return np.ascontiguousarray(ordered.astype(np.uint8))
