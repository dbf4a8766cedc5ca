"""Blends, against values worked out by hand (noted beside each)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.detection.superimpose import BLEND_RULES, ValueRange, blend_pairs, superimpose

UNIT = ValueRange((0.0,), (1.0,), 0)
BYTES = ValueRange((0.0,), (255.0,), 0)


def image(*values: float, dtype: type = np.float32) -> np.ndarray:
    """Return one image of one channel and one line, as a batch."""
    return np.array(values, dtype).reshape(1, 1, 1, -1)


def blend(rule: str, left: np.ndarray, right: np.ndarray, value_range: ValueRange = UNIT) -> list[float]:
    return superimpose(left, right, BLEND_RULES[rule], value_range).ravel().tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("add", [0.75, 1.5, -1.0]),  # x + o
        ("add_clip", [0.75, 1.0, 0.0]),  # the same within 0..1
        ("half_clip", [0.625, 1.0, 0.0]),  # x + o/2: 0.625, 1.125, -0.75
        ("convex", [0.375, 0.75, -0.5]),  # (x + o)/2
    ],
)
def test_each_rule_equals_the_sum_worked_out_by_hand(rule: str, expected: list[float]) -> None:
    assert blend(rule, image(0.5, 0.75, -0.5), image(0.25, 0.75, -0.5)) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("add", [30, 255, 255, 2]),  # 30, 300 saturated, 355 saturated, 2
        ("add_clip", [30, 255, 255, 2]),
        ("half_clip", [20, 200, 255, 2]),  # 20, 200, 277.5 saturated, 1.5 rounded up
        ("convex", [15, 150, 178, 1]),  # 15, 150, 177.5 rounded up, 1
    ],
)
def test_bytes_are_rounded_half_up_and_saturated(rule: str, expected: list[float]) -> None:
    left = image(10, 100, 200, 1, dtype=np.uint8)
    right = image(20, 200, 155, 1, dtype=np.uint8)
    assert blend(rule, left, right, BYTES) == expected


def test_bytes_are_clipped_to_a_range_narrower_than_the_dtype() -> None:
    left, right = image(10, 200, dtype=np.uint8), image(1, 100, dtype=np.uint8)
    video = ValueRange((16.0,), (235.0,), 0)
    assert blend("add_clip", left, right, video) == [16, 235]
    assert blend("add", left, right, video) == [11, 255]


def test_float16_is_blended_in_float32_and_rounded_once() -> None:
    left, right = image(1.0, dtype=np.float16), image(2**-11 + 2**-20, dtype=np.float16)
    blended = superimpose(left, right, BLEND_RULES["add"], UNIT)
    assert blended.dtype == np.float16
    assert blended.item() == 1 + 2**-10  # 1 + 2^-11 lies half way; 2^-20 more is nearer to the next value
    assert blend("convex", image(0.5, dtype=np.float16), image(0.25, dtype=np.float16)) == [0.375]


def test_the_range_is_per_channel_in_channels_first_images() -> None:
    left = np.full((1, 2, 1, 2), 0.5, np.float32)  # n c h w
    right = np.full((1, 2, 1, 2), 2.0, np.float32)
    value_range = ValueRange((-1.0, 0.0), (1.0, 2.0), channel_axis=0)
    blended = superimpose(left, right, BLEND_RULES["add_clip"], value_range)
    assert blended[0, 0].tolist() == [[[1.0, 1.0]], [[2.0, 2.0]]]
    assert (-left[0]).min() == -0.5
    below = superimpose(-left, -right, BLEND_RULES["add_clip"], value_range)
    assert below[0, 0].tolist() == [[[-1.0, -1.0]], [[0.0, 0.0]]]


def test_the_range_is_per_channel_in_channels_last_images() -> None:
    left = np.full((1, 1, 2, 2), 0.5, np.float32)  # n h w c
    right = np.full((1, 1, 2, 2), 2.0, np.float32)
    value_range = ValueRange((-1.0, 0.0), (1.0, 2.0), channel_axis=2)
    blended = superimpose(left, right, BLEND_RULES["add_clip"], value_range)
    assert blended[0, 0].tolist() == [[[1.0, 2.0], [1.0, 2.0]]]


@pytest.mark.parametrize("axis", [0, 2])
def test_the_bounds_broadcast_over_one_row(axis: int) -> None:
    low, high = ValueRange((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), axis).bounds()
    shape = (3, 1, 1) if axis == 0 else (1, 1, 3)
    assert low.shape == high.shape == shape
    assert low.ravel().tolist() == [1.0, 2.0, 3.0]
    assert high.ravel().tolist() == [4.0, 5.0, 6.0]
    assert low.dtype == high.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("rule", list(BLEND_RULES))
def test_the_image_itself_comes_through_bit_for_bit_and_is_never_clipped(rule: str, dtype: type) -> None:
    images = image(0.1, 3.7, 200.0, 250.0, dtype=dtype)  # most of it outside the range
    overlays = image(9.0, 9.0, 9.0, 9.0, dtype=dtype)
    index, nothing = np.zeros(2, np.int64), np.array([-1, 0], np.int64)
    alone, blended = blend_pairs(images, overlays, index, nothing, BLEND_RULES[rule], UNIT)
    assert alone.dtype == dtype
    assert alone.tobytes() == images[0].tobytes()
    assert blended.tobytes() != images[0].tobytes()


def test_every_image_meets_every_overlay_in_order() -> None:
    images = np.array([1.0, 2.0], np.float32).reshape(2, 1, 1, 1)
    overlays = np.array([10.0, 20.0, 30.0], np.float32).reshape(3, 1, 1, 1)
    blended = superimpose(images, overlays, BLEND_RULES["add"], UNIT)
    assert blended.shape == (2, 3, 1, 1, 1)
    assert blended.reshape(2, 3).tolist() == [[11, 21, 31], [12, 22, 32]]


def test_pairs_may_come_in_any_order_and_repeat() -> None:
    images = np.array([1.0, 2.0], np.float32).reshape(2, 1, 1, 1)
    overlays = np.array([10.0, 20.0], np.float32).reshape(2, 1, 1, 1)
    rule, left = BLEND_RULES["add"], np.array([1, 0, 1, 1], np.int64)
    right = np.array([0, -1, 1, 0], np.int64)
    blended = blend_pairs(images, overlays, left, right, rule, UNIT)
    assert blended.ravel().tolist() == [12, 1, 22, 12]


def test_the_inputs_are_left_as_they_were() -> None:
    images, overlays = image(0.5, 0.9), image(0.7, 0.7)
    superimpose(images, overlays, BLEND_RULES["add_clip"], UNIT)
    assert images.tolist() == image(0.5, 0.9).tolist()
    assert overlays.tolist() == image(0.7, 0.7).tolist()


some_bytes = hnp.arrays(np.uint8, (2, 3, 2, 2))


@given(some_bytes, some_bytes, st.sampled_from(sorted(BLEND_RULES)))
def test_bytes_follow_the_formula_for_all_values(images: np.ndarray, overlays: np.ndarray, name: str) -> None:
    rule = BLEND_RULES[name]
    exact = rule.image_weight * images[:, None].astype(float) + rule.overlay_weight * overlays[None]
    expected = np.minimum(np.floor(exact + 0.5), 255.0)
    np.testing.assert_array_equal(superimpose(images, overlays, rule, BYTES), expected)


unit_images = hnp.arrays(np.float32, (2, 3, 2, 2), elements=st.floats(0, 1, width=32))


@given(unit_images, unit_images, st.sampled_from(["add_clip", "half_clip", "convex"]))
def test_clipping_and_averaging_stay_within_the_range(
    images: np.ndarray, overlays: np.ndarray, name: str
) -> None:
    blended = superimpose(images, overlays, BLEND_RULES[name], UNIT)
    assert blended.min() >= 0.0
    assert blended.max() <= 1.0


def test_the_rules_are_the_four_that_a_profile_may_name() -> None:
    assert {name: rule.name for name, rule in BLEND_RULES.items()} == {
        name: name for name in ("add", "add_clip", "half_clip", "convex")
    }
    assert {name for name, rule in BLEND_RULES.items() if rule.clip} == {"add_clip", "half_clip"}
