"""Batches of few sizes: every pair comes through once and in order, and what fills them is harmless."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.runtime.padding import padded_batches, sizes_up_to


@given(largest=st.integers(1, 3000))
def test_sizes_double_up_to_the_first_that_holds_the_largest(largest: int) -> None:
    sizes = sizes_up_to(largest)
    assert sizes[0] == 1
    assert all(b == 2 * a for a, b in pairwise(sizes))
    assert sizes[-1] >= largest
    assert sizes[-1] < 2 * largest


@given(
    n_images=st.integers(1, 12), pairs=st.integers(0, 40), largest=st.integers(1, 16), seed=st.integers(0, 99)
)
def test_each_pair_comes_once_in_order_with_its_own_image_and_overlay(
    n_images: int, pairs: int, largest: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    images = np.arange(n_images, dtype=np.float32).reshape(-1, 1, 1, 1)
    image_index = generator.integers(0, n_images, pairs)
    overlay_index = generator.integers(-1, 8, pairs)
    batches = list(padded_batches(images, image_index, overlay_index, sizes_up_to(largest)))
    assert sum(batch.pairs for batch in batches) == pairs
    seen, overlays = [], []
    for batch in batches:
        asked = slice(0, batch.pairs)
        seen += batch.images[batch.image_index[asked], 0, 0, 0].tolist()
        overlays += batch.overlay_index[asked].tolist()
        assert len(batch.image_index) == len(batch.overlay_index) == batch.shape[1]
        assert set(batch.shape) <= set(sizes_up_to(largest))
        assert batch.shape[1] < 2 * batch.pairs or batch.pairs == 1
        assert len(batch.images) <= batch.image_rows <= batch.shape[1]
        assert (batch.overlay_index[batch.pairs :] == -1).all()
        assert batch.image_index.dtype == batch.overlay_index.dtype == np.int64
    assert seen == image_index.tolist()
    assert overlays == overlay_index.tolist()


def test_images_that_no_pair_is_of_are_left_out_where_they_are_more_than_pairs() -> None:
    images = np.arange(9, dtype=np.float32).reshape(-1, 1, 1, 1)
    (batch,) = padded_batches(images, np.array([7, 2, 7]), np.array([0, 1, -1]), sizes_up_to(8))
    assert batch.images.ravel().tolist() == [2.0, 7.0]
    assert batch.image_index.tolist() == [1, 0, 1, 1]
    assert batch.overlay_index.tolist() == [0, 1, -1, -1]
    assert batch.shape == (2, 4)


@pytest.mark.parametrize("image_index", [[0, 2], [-1, 0]])
def test_a_pair_of_an_image_that_is_not_there_is_refused(image_index: list[int]) -> None:
    """What is behind the images of a batch may be another request's."""
    images = np.zeros((2, 1, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"expected pairs of 2 images, got image"):
        list(padded_batches(images, np.array(image_index), np.array([0, 0]), sizes_up_to(8)))
