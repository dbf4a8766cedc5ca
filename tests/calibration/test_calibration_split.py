"""Overlays are a uniform draw, and the rest stays an independent sample of the clean inputs."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import TooFewImagesError
from calibration.split import split_images
from calibration.threshold import conformal_rank


def images_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)


@given(st.integers(2, 60), st.data(), st.integers(0, 99))
def test_every_row_is_an_overlay_or_calibrates_copies_included(
    n: int, data: st.DataObject, seed: int
) -> None:
    images = images_of(3)[np.arange(n) % 3]
    count = data.draw(st.integers(1, n - 1))
    split = split_images(images, count, np.random.default_rng(seed))
    assert len(split.overlays) == count
    assert sorted([*split.overlays.tolist(), *split.calibration.tolist()]) == list(range(n))
    assert split.calibration.tolist() == sorted(split.calibration.tolist())


def test_copies_of_overlays_and_repeats_are_counted() -> None:
    images = np.concatenate([images_of(20)] * 3)
    split = split_images(images, 5, np.random.default_rng(1))
    drawn = set((split.overlays % 20).tolist())
    assert split.n_copies == 3 * len(drawn) - 5
    assert split.n_repeats == 55 - len(set((split.calibration % 20).tolist()))
    distinct = split_images(images_of(60), 5, np.random.default_rng(1))
    assert (distinct.n_copies, distinct.n_repeats) == (0, 0)


def test_images_that_differ_only_in_a_last_zero_are_no_copies() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[1, -1, -1, -1], images[2, 0, 0, 0] = 1, 1
    split = split_images(images, 1, np.random.default_rng(0))
    assert (split.n_copies, split.n_repeats) == (0, 0)


def test_the_same_generator_draws_the_same_overlays() -> None:
    one, same, other = (
        split_images(images_of(50), 8, np.random.default_rng(seed)).overlays for seed in (3, 3, 4)
    )
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_every_image_is_drawn_equally_often() -> None:
    images, generator, draws = images_of(20), np.random.default_rng(8), 4000
    counts = np.zeros(20)
    for _ in range(draws):
        counts[split_images(images, 5, generator).overlays] += 1
    np.testing.assert_allclose(counts / draws, 5 / 20, atol=5 * np.sqrt(0.25 * 0.75 / draws))


def test_the_guarantee_survives_the_draw_where_a_rare_class_scores_lowest() -> None:
    """Overlays drawn evenly over the classes break this promise in nearly every calibration."""
    n, n_overlays, rare, alpha, delta, draws = 600, 32, 0.04, 0.05, 0.1, 300
    generator = np.random.default_rng(5)
    rank = conformal_rank(n - n_overlays, alpha, delta)
    broken = 0
    for _ in range(draws):
        is_rare = generator.random(n) < rare
        scores = np.where(is_rare, generator.random(n), 1 + generator.random(n))
        split = split_images(scores.reshape(-1, 1, 1, 1), n_overlays, generator)
        boundary = np.sort(scores[split.calibration])[rank - 1]
        rate = rare * min(boundary, 1.0) + (1 - rare) * max(boundary - 1.0, 0.0)
        broken += rate > alpha
    assert broken / draws <= delta + 4 * np.sqrt(delta * (1 - delta) / draws)


def test_as_many_overlays_as_images_are_refused() -> None:
    expected = (
        "10 images cannot give 10 overlays and calibration images besides; add images or lower --overlays"
    )
    with pytest.raises(TooFewImagesError, match=re.escape(expected)) as caught:
        split_images(images_of(10), 10, np.random.default_rng(0))
    assert (caught.value.needed, caught.value.got) == (11, 10)
