"""Superimpose an input with clean held-out images: the perturbation STRIP measures with.

The right rule differs per model, so it is a setting of the profile, chosen at calibration.
Blends are made in the space the client sends, so clipping uses that space's value range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Float32, Num

from guard.arrays import Images, Overlays, PairIndex

__all__ = ["BLEND_RULES", "BlendRule", "ValueRange", "blend_pairs", "superimpose"]

_Pairs = Num[np.ndarray, "p *row"]

_SLACK = 1e-3


@dataclass(frozen=True)
class BlendRule:
    """How an image x and an overlay o become one: ``image_weight * x + overlay_weight * o``.

    Attributes:
        clip: Whether the blend is clipped to the declared value range.
    """

    name: str
    image_weight: float
    overlay_weight: float
    clip: bool


BLEND_RULES: Final[Mapping[str, BlendRule]] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            BlendRule("add", 1.0, 1.0, clip=False),
            BlendRule("add_clip", 1.0, 1.0, clip=True),
            BlendRule("half_clip", 1.0, 0.5, clip=True),
            BlendRule("convex", 0.5, 0.5, clip=False),
        )
    }
)
"""The rules a profile may name. ``add`` is the paper's: x + o, not clipped."""


@dataclass(frozen=True)
class ValueRange:
    """Smallest and largest value a client's images may hold, for the whole image or per channel.

    Attributes:
        low, high: One value, or one for each channel.
        channel_axis: Axis of the channels within one row (0 for ``c h w``, 2 for ``h w c``).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    channel_axis: int

    def bounds(self) -> tuple[Float32[np.ndarray, "*row"], Float32[np.ndarray, "*row"]]:
        """Return the two bounds, shaped to broadcast over one row of three axes."""
        shape = [1, 1, 1]
        shape[self.channel_axis] = -1
        low = np.asarray(self.low, np.float32).reshape(shape)
        high = np.asarray(self.high, np.float32).reshape(shape)
        return low, high

    def tolerated(self) -> tuple[Float32[np.ndarray, "*row"], Float32[np.ndarray, "*row"]]:
        """Return the bounds beyond which an input cannot be checked.

        A thousandth of the range is allowed on either side, for the rounding of resizers.
        """
        low, high = self.bounds()
        slack = _SLACK * (high - low)
        return low - slack, high + slack


def superimpose(
    images: Images,
    overlays: Overlays,
    rule: BlendRule,
    value_range: ValueRange,
) -> Num[np.ndarray, "n m *row"]:
    """Return every image blended with every overlay, in the images' dtype.

    uint8 images are blended in float32, rounded half up and saturated at 0 and 255, so on them
    ``add`` and ``add_clip`` differ only where the value range is narrower than the dtype.

    Args:
        images: Images as the client sends them.
        overlays: Clean held-out images in the same space and dtype.
        rule: Weights and clipping, from :data:`BLEND_RULES`.
        value_range: Range the rule clips to.

    References:
        Gao et al., STRIP, ACSAC 2019, section 4.1 (superimposing); the released code adds
        with weights 1 and 1 and does not clip.
    """
    n, m = len(images), len(overlays)
    image_index = np.repeat(np.arange(n, dtype=np.int64), m)
    overlay_index = np.tile(np.arange(m, dtype=np.int64), n)
    pairs = blend_pairs(images, overlays, image_index, overlay_index, rule, value_range)
    return pairs.reshape(n, m, *images.shape[1:])


def blend_pairs(
    images: Images,
    overlays: Overlays,
    image_index: PairIndex,
    overlay_index: PairIndex,
    rule: BlendRule,
    value_range: ValueRange,
) -> _Pairs:
    """Return each image blended with its overlay, as the check graph does.

    Args:
        images: Images as the client sends them.
        overlays: Clean held-out images in the same space and dtype.
        image_index: Image of each pair.
        overlay_index: Overlay of each pair; -1 for the image itself, unchanged and never clipped.
        rule: Weights and clipping.
        value_range: Range the rule clips to.
    """
    left = images[image_index].astype(np.float32)
    right = overlays[np.maximum(overlay_index, 0)].astype(np.float32)
    blended = np.float32(rule.image_weight) * left + np.float32(rule.overlay_weight) * right
    if rule.clip:
        blended = np.clip(blended, *value_range.bounds())
    alone = (overlay_index < 0).reshape(-1, *(1,) * (images.ndim - 1))
    return _as_dtype(np.where(alone, left, blended), images.dtype)


def _as_dtype(blended: _Pairs, dtype: np.dtype[np.generic]) -> _Pairs:
    if np.issubdtype(dtype, np.floating):
        return blended.astype(dtype, copy=False)
    highest = float(np.iinfo(np.uint8).max)
    return np.clip(np.floor(blended + 0.5), 0.0, highest).astype(np.uint8)
