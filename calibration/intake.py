"""How stored images become rows of a model's input: what scans, repairs and evaluations share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Num

from calibration.data import Geometry
from calibration.preprocessing import Prepare, Transform, plan_input
from guard.arrays import Images, held
from guard.artifact.signature import Signature

__all__ = ["declared_range", "ends_of", "geometry_of", "image_shape", "model_rows", "rows_of"]

Ends = tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]


def image_shape(signature: Signature) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a model takes, whatever its layout."""
    first, second, third = signature.shape
    return (first, second, third) if signature.layout == "NCHW" else (third, first, second)


def geometry_of(signature: Signature, transform: Transform) -> Geometry:
    """Return what a model asks of an image."""
    channels, height, width = image_shape(signature)
    first = signature.layout == "NCHW"
    resize = transform.resize is not None
    return Geometry(channels, (height, width), channels_first=first, resize=resize, sizing=transform.sizing)


def rows_of(
    images: Num[np.ndarray, "n h w c"], prepare: Prepare, signature: Signature
) -> Float32[np.ndarray, "n c h w"]:
    """Return stored images in the values that a model takes, float32, channels first."""
    rows = prepare(images).astype(np.float32)
    first = rows if signature.layout == "NCHW" else rows.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(first)


def model_rows(rows: Float32[np.ndarray, "n c h w"], signature: Signature) -> Images:
    """Return such rows in a model's own layout and type; for 8 bits they are rounded."""
    turned = rows if signature.layout == "NCHW" else rows.transpose(0, 2, 3, 1)
    if signature.datatype == "UINT8":
        turned = np.rint(turned).clip(0, 255)
    typed: Images = np.ascontiguousarray(held(turned, signature.datatype))
    return typed


def ends_of(prepare: Prepare, signature: Signature) -> Ends:
    """Return the smallest and the largest value of each channel."""
    channels = image_shape(signature)[0]
    low, high = (np.asarray(end, np.float32) for end in (prepare.source.low, prepare.source.high))
    return np.broadcast_to(low, channels).copy(), np.broadcast_to(high, channels).copy()


def declared_range(signature: Signature, transform: Transform) -> Ends:
    """Return the range that a tiny stored image, black and white, would have after preprocessing."""
    channels, height, width = image_shape(signature)
    eight_bits = signature.datatype == "UINT8"
    extremes = np.zeros((2, height, width, channels), np.uint8 if eight_bits else np.float32)
    extremes[1] = 255 if eight_bits else 1
    return ends_of(plan_input(signature, extremes, transform), signature)
