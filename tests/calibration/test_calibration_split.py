"""Overlays and calibration images have nothing in common, and overlays are even over the classes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import TooFewImagesError
from calibration.split import draw_overlays, split_images


def images_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)


def keys(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=80), st.data(), st.integers(0, 99))
def test_overlays_are_as_even_over_the_classes_as_the_classes_allow(
    classes: list[int], data: st.DataObject, seed: int
) -> None:
    labels = np.array(classes, np.int64)
    count = data.draw(st.integers(1, len(labels) - 1))
    drawn = draw_overlays(labels, count, np.random.default_rng(seed))
    assert len(set(drawn.tolist())) == count
    held, taken = np.bincount(labels, minlength=7), np.bincount(labels[drawn], minlength=7)
    most = taken.max()
    assert all(took >= min(most - 1, had) for took, had in zip(taken, held, strict=True))


@given(st.integers(2, 60), st.data(), st.integers(0, 99))
def test_overlays_and_calibration_images_are_disjoint_and_complete(
    n: int, data: st.DataObject, seed: int
) -> None:
    images, labels = images_of(n), np.arange(n) % 3
    count = data.draw(st.integers(1, n - 1))
    split = split_images(images, labels, count, np.random.default_rng(seed))
    assert sorted([*split.overlays.tolist(), *split.calibration.tolist()]) == list(range(n))
    assert not set(keys(images[split.overlays])) & set(keys(images[split.calibration]))
    assert split.calibration.tolist() == sorted(split.calibration.tolist())


def test_copies_of_overlays_are_left_out_of_calibration_and_counted() -> None:
    images = np.concatenate([images_of(20)] * 3)
    split = split_images(images, np.arange(60) % 20, 5, np.random.default_rng(1))
    distinct = len(set(keys(images[split.overlays])))
    assert split.n_copies_dropped == 3 * distinct - 5
    assert len(split.calibration) == 60 - 3 * distinct
    assert not set(keys(images[split.overlays])) & set(keys(images[split.calibration]))
    assert split.n_repeats == 2 * (20 - distinct)


def test_the_same_generator_draws_the_same_overlays() -> None:
    images, labels = images_of(50), np.arange(50) % 5
    one, same, other = (split_images(images, labels, 8, np.random.default_rng(s)).overlays for s in (3, 3, 4))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_every_row_of_a_class_may_become_an_overlay() -> None:
    labels = np.array([0] * 5 + [1] * 5)
    drawn = {
        row for seed in range(60) for row in draw_overlays(labels, 2, np.random.default_rng(seed)).tolist()
    }
    assert drawn == set(range(10))


def test_even_classes_keep_their_shares_and_a_depleted_one_shows() -> None:
    images, even = images_of(100), np.arange(100) % 10
    assert split_images(images, even, 20, np.random.default_rng(0)).class_shift == pytest.approx(0.0)
    rare = np.array([0] * 95 + [1] * 5)
    shift = split_images(images, rare, 10, np.random.default_rng(0)).class_shift
    assert shift == pytest.approx(0.05)  # all 5 of the rare class became overlays


def test_as_many_overlays_as_images_are_refused() -> None:
    expected = (
        "10 images cannot give 10 overlays and calibration images besides; add images or lower --overlays"
    )
    with pytest.raises(TooFewImagesError, match=re.escape(expected)) as caught:
        split_images(images_of(10), np.arange(10), 10, np.random.default_rng(0))
    assert (caught.value.needed, caught.value.got) == (11, 10)
