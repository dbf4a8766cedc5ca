"""From stored pixels to the model's input, and the value range that follows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import OptionError
from calibration.preprocessing import Transform, plan_input
from guard.arrays import DATATYPES
from guard.artifact.signature import Signature

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def signature(datatype: str = "FP32", layout: str = "NCHW") -> Signature:
    shape = (3, 4, 5) if layout == "NCHW" else (4, 5, 3)
    return Signature("images", datatype, shape, layout, None, "logits", "FP32", 10)


def bytes_images(n: int = 6) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    return images


def test_8_bit_images_become_unit_floats_channels_first() -> None:
    prepare = plan_input(signature(), bytes_images(), Transform())
    rows = prepare(bytes_images())
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_allclose(rows, bytes_images().transpose(0, 3, 1, 2) / 255.0, rtol=1e-6)
    assert (prepare.source.low, prepare.source.high) == ((0.0,), (1.0,))
    assert prepare.source.shape == (3, 4, 5)
    assert prepare.record.scale == 1 / 255
    assert (prepare.stored.low, prepare.stored.high, prepare.stored.origin) == (0.0, 255.0, "8-bit pixels")


def test_8_bit_images_reach_a_uint8_model_untouched() -> None:
    prepare = plan_input(signature("UINT8", "NHWC"), bytes_images(), Transform())
    np.testing.assert_array_equal(prepare(bytes_images()), bytes_images())
    assert prepare(bytes_images()).dtype == np.uint8
    assert (prepare.source.low, prepare.source.high) == ((0.0,), (255.0,))
    assert (prepare.record.scale, prepare.record.mean, prepare.record.std) == (1.0, (0.0,), (1.0,))


def test_float_images_are_left_as_they_are() -> None:
    images = (bytes_images() / 255).astype(np.float32)
    prepare = plan_input(signature(layout="NHWC"), images, Transform())
    np.testing.assert_array_equal(prepare(images), images)
    assert (prepare.source.low, prepare.source.high) == ((0.0,), (1.0,))
    assert not prepare.stored.measured


def test_mean_and_deviation_work_per_channel_and_move_the_range() -> None:
    prepare = plan_input(signature(), bytes_images(), Transform(mean=MEAN, std=STD))
    expected = ((bytes_images() / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(prepare(bytes_images()), expected, atol=2e-6)
    np.testing.assert_allclose(prepare.source.low, -np.array(MEAN) / STD, rtol=1e-6)
    np.testing.assert_allclose(prepare.source.high, (1 - np.array(MEAN)) / STD, rtol=1e-6)
    assert prepare.record.mean == MEAN


def test_one_value_for_all_channels_keeps_one_range_for_all() -> None:
    prepare = plan_input(signature(), bytes_images(), Transform(scale=1 / 127.5, mean=(1.0,)))
    assert (prepare.source.low, prepare.source.high) == ((-1.0,), (1.0,))


def test_a_negative_scale_swaps_the_ends_of_the_range() -> None:
    images = (bytes_images() / 255).astype(np.float32)
    prepare = plan_input(signature(), images, Transform(scale=-1.0, mean=(-1.0,)))
    assert (prepare.source.low, prepare.source.high) == ((0.0,), (1.0,))


@given(
    st.sampled_from(["FP32", "FP16"]),
    st.sampled_from(["NCHW", "NHWC"]),
    st.tuples(*[st.floats(-2, 2)] * 3),
    st.tuples(*[st.floats(0.05, 3)] * 3),
    st.floats(0.001, 0.05),
)
def test_every_pixel_lies_within_the_declared_range(
    datatype: str, layout: str, mean: tuple[float, ...], std: tuple[float, ...], scale: float
) -> None:
    wish = Transform(scale=scale, mean=mean, std=std)
    prepare = plan_input(signature(datatype, layout), bytes_images(), wish)
    rows = prepare(bytes_images())
    assert rows.dtype == DATATYPES[datatype]
    low, high = prepare.source.value_range.bounds()
    assert (rows.astype(np.float32) >= low).all()
    assert (rows.astype(np.float32) <= high).all()
    assert rows.astype(np.float32).max() == high.max()  # the images hold 0 and 255 in every channel


def test_float_images_beyond_the_unit_interval_bring_a_measured_range() -> None:
    images = np.linspace(-2, 3, 120, dtype=np.float32).reshape(2, 4, 5, 3)
    stored = plan_input(signature(), images, Transform()).stored
    assert (stored.low, stored.high, stored.measured) == (-2.0, 3.0, True)


def test_a_declared_range_wins_over_the_measured_one() -> None:
    images = np.linspace(-2, 3, 120, dtype=np.float32).reshape(2, 4, 5, 3)
    prepare = plan_input(signature(), images, Transform(value_range=(-4.0, 4.0)))
    assert (prepare.source.low, prepare.source.high) == ((-4.0,), (4.0,))
    assert not prepare.stored.measured


@pytest.mark.parametrize(
    ("datatype", "stored", "wish", "message"),
    [
        ("UINT8", "float", Transform(), "the model takes uint8 images and the data holds"),
        ("UINT8", "uint8", Transform(scale=2.0, std=(1.0,)), "pixels as they are; leave out --scale, --std"),
        ("FP32", "uint8", Transform(mean=(0.1, 0.2)), "--mean has 2 values, expected 1 or 3, one for"),
        ("FP32", "uint8", Transform(std=(1.0,) * 4), "--std has 4 values, expected 1 or 3, one for"),
        ("FP32", "uint8", Transform(value_range=(0.0, 1.0)), "--range is for floating-point images"),
        ("FP32", "float", Transform(value_range=(0.5, 1.0)), "the images hold values from 0 to 1; widen it"),
        ("FP32", "flat", Transform(), "every pixel of every image is 7; check the data, or"),
        ("FP16", "uint8", Transform(scale=1e6), "in FP16, expected finite values and a range; change"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(datatype: str, stored: str, wish: Transform, message: str) -> None:
    images = {
        "uint8": bytes_images(),
        "float": (bytes_images() / 255).astype(np.float32),
        "flat": np.full((2, 4, 5, 3), 7, np.float32),
    }[stored]
    with pytest.raises(OptionError, match=re.escape(message)):
        plan_input(signature(datatype), images, wish)
