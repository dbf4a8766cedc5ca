"""Triggers as pictures: held images without and with the trigger, and the difference, amplified."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from calibration.html_markup import Markup, element
from calibration.scan.base import FoundTrigger

__all__ = ["pictures"]

_IMAGES = 6
_SIDE = 128
_WIDTH_REM = 6.4
_BRIGHTEST_GAIN = 32

Pictures = UInt8[np.ndarray, "m h w c"]
Shrunk = UInt8[np.ndarray, "m h1 w1 c"]


def pictures(trigger: FoundTrigger, name: str) -> Markup:
    """Return three strips of pictures with captions; nothing if the trigger has none.

    Args:
        trigger: With images before and after.
        name: Of what it turns into what, for the descriptions.
    """
    count = min(len(trigger.before), len(trigger.after), _IMAGES)
    if not count:
        return Markup()
    before, after = trigger.before[:count], trigger.after[:count]
    difference, gain = _difference(before, after)
    return element(
        "div",
        _strip(_shrunk(before), "before", f"{count} held images without the trigger for {name}"),
        _strip(_shrunk(after), "after", f"the same {count} images with the trigger for {name}"),
        _strip(
            difference, f"difference ×{gain}", f"what the trigger for {name} changes, {gain} times as strong"
        ),
        class_="strips",
    )


def _strip(images: Pictures, caption: str, description: str) -> Markup:
    row = _side_by_side(images)
    source = f"data:image/png;base64,{base64.b64encode(_png(row)).decode('ascii')}"
    width = f"max-width:{_WIDTH_REM * len(images):.1f}rem"
    picture = element(
        "img", src=source, alt=description, width=row.shape[1], height=row.shape[0], style=width
    )
    return element("figure", picture, element("figcaption", caption))


def _side_by_side(images: Pictures) -> UInt8[np.ndarray, "h width 4"]:
    """Return pictures in a row, RGBA, with gaps that are not painted.

    Pictures that are neither grey nor RGB are shown as the mean of their channels.
    """
    count, height, width, channels = images.shape
    colours = (
        images if channels == 3 else np.repeat(images.mean(3, keepdims=True).astype(np.uint8), 3, axis=3)
    )
    gap = max(1, width // 32)
    row = np.zeros((height, count, width + gap, 4), np.uint8)
    row[:, :, :width, :3] = colours.transpose(1, 0, 2, 3)
    row[:, :, :width, 3] = 255
    return row.reshape(height, count * (width + gap), 4)[:, :-gap]


def _png(picture: UInt8[np.ndarray, "h w 4"]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, "PNG", optimize=True)
    return content.getvalue()


def _difference(before: Pictures, after: Pictures) -> tuple[Shrunk, int]:
    """Return how much each value changed, as bright as fits, and how many times it was made stronger."""
    changed = np.abs(after.astype(np.int16) - before.astype(np.int16))
    gain = max(1, min(_BRIGHTEST_GAIN, 255 // max(int(changed.max()), 1)))
    return _largest((changed * gain).astype(np.uint8)), gain


def _blocks(images: Pictures) -> UInt8[np.ndarray, "m h1 f1 w1 f2 c"]:
    """Return images cut into squares, so that none has more than 128 of them along a side."""
    count, height, width, channels = images.shape
    factor = min(-(-max(height, width) // _SIDE), height, width)
    cut = images[:, : height // factor * factor, : width // factor * factor]
    return cut.reshape(count, height // factor, factor, width // factor, factor, channels)


def _shrunk(images: Pictures) -> Shrunk:
    return np.asarray(_blocks(images).mean((2, 4)).round(), np.uint8)


def _largest(images: Pictures) -> Shrunk:
    """Return images shrunk to the strongest of what falls together, so that single pixels stay."""
    return np.asarray(_blocks(images).max((2, 4)), np.uint8)
