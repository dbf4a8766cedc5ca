"""Batches of few sizes: what is asked is cut and filled up, and what fills it is dropped. Pure.

A filling pair is the first image of its batch without an overlay. Rows of a batch do not affect one another
(:meth:`guard.runtime.onnx_classifier.OnnxClassifier.warm_up` sees to that), so it changes no answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from guard.arrays import Images, PairIndex

__all__ = ["PaddedBatch", "padded_batches", "sizes_up_to"]


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """One device call.

    Attributes:
        images: Rows that its pairs are of; to be followed by any rows up to ``image_rows``.
        image_rows: Rows there have to be.
        image_index, overlay_index: Pairs, filled up.
        pairs: How many of them were asked for; they come first.
    """

    images: Images
    image_rows: int
    image_index: PairIndex
    overlay_index: PairIndex
    pairs: int

    @property
    def shape(self) -> tuple[int, int]:
        """Images and pairs, which with the model's shapes say the shape of everything."""
        return self.image_rows, len(self.image_index)


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """Return the powers of two up to the first that holds ``largest``.

    Examples:
        >>> sizes_up_to(5)
        (1, 2, 4, 8)
        >>> sizes_up_to(1)
        (1,)
    """
    return tuple(2**power for power in range((largest - 1).bit_length() + 1))


def padded_batches(
    images: Images, image_index: PairIndex, overlay_index: PairIndex, sizes: tuple[int, ...]
) -> Iterator[PaddedBatch]:
    """Yield the pairs in order, in batches whose numbers of images and of pairs are both in ``sizes``.

    Args:
        images: Rows, more or fewer than pairs.
        image_index: Image of each pair.
        overlay_index: Overlay of each pair; -1 for the image itself.
        sizes: Ascending.

    Raises:
        ValueError: If a pair is of an image that is not there, which might show another's.
    """
    if len(image_index) and not 0 <= image_index.min() <= image_index.max() < len(images):
        raise ValueError(
            f"expected pairs of {len(images)} images, got image {image_index.min()} to {image_index.max()}"
        )
    for start in range(0, len(image_index), sizes[-1]):
        part = slice(start, start + sizes[-1])
        yield _padded(images, image_index[part], overlay_index[part], sizes)


def _padded(
    images: Images, image_index: PairIndex, overlay_index: PairIndex, sizes: tuple[int, ...]
) -> PaddedBatch:
    pairs = len(image_index)
    if len(images) > pairs:
        used, image_index = np.unique(image_index, return_inverse=True)
        images = images[used]
    filling = _size_of(pairs, sizes) - pairs
    return PaddedBatch(
        images,
        _size_of(len(images), sizes),
        np.append(image_index, np.full(filling, image_index[0])).astype(np.int64, copy=False),
        np.append(overlay_index, np.full(filling, -1)).astype(np.int64, copy=False),
        pairs,
    )


def _size_of(count: int, sizes: tuple[int, ...]) -> int:
    return sizes[bisect_left(sizes, count)]
