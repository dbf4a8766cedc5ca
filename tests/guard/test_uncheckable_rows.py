"""Which rows can be checked: the range of each channel, to a thousandth."""

from __future__ import annotations

import numpy as np
import pytest

from guard.artifact import InputSpec
from guard.dataplane.validation import uncheckable_rows
from guard.metrics import UncheckableReason


def spec(datatype: str = "FP32", layout: str = "NCHW", **bounds: tuple[float, ...]) -> InputSpec:
    shape = (3, 2, 2) if layout == "NCHW" else (2, 2, 3)
    return InputSpec(
        name="images",
        datatype=datatype,
        shape=shape,
        layout=layout,
        **{"low": (0.0,), "high": (1.0,), **bounds},
    )


def image_with(channel: int, value: float, layout: str, dtype: type = np.float32) -> np.ndarray:
    """Return one image of halves with one pixel of one channel set."""
    image = np.full((1, 3, 2, 2), 0.5 if dtype is np.float32 else 50, dtype)
    image[0, channel, 1, 0] = value
    return image if layout == "NCHW" else image.transpose(0, 2, 3, 1).copy()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("channel", "value", "fits"),
    [(0, 0.9, True), (0, 1.5, False), (1, 1.5, True), (1, 2.5, False), (2, 3.5, True), (2, -0.5, False)],
)
def test_each_channel_has_its_own_range(layout: str, channel: int, value: float, fits: bool) -> None:
    ranged = spec(layout=layout, low=(0.0, 0.0, 0.0), high=(1.0, 2.0, 4.0))
    mask, reasons = uncheckable_rows(image_with(channel, value, layout), ranged)
    assert mask.tolist() == [fits]
    assert [reason for reason, _ in reasons.values()] == ([] if fits else [UncheckableReason.OUT_OF_RANGE])


@pytest.mark.parametrize(
    ("value", "fits"), [(1.0009, True), (1.0015, False), (-0.0009, True), (-0.002, False)]
)
def test_a_thousandth_of_the_range_is_allowed_and_no_more(value: float, fits: bool) -> None:
    assert uncheckable_rows(image_with(0, value, "NCHW"), spec())[0].tolist() == [fits]


def test_the_slack_grows_with_the_range() -> None:
    wide = spec(low=(0.0,), high=(1000.0,))
    assert uncheckable_rows(image_with(0, 1000.9, "NCHW"), wide)[0].tolist() == [True]
    assert uncheckable_rows(image_with(0, 1001.5, "NCHW"), wide)[0].tolist() == [False]


@pytest.mark.parametrize(
    ("channel", "value", "fits"), [(0, 255, True), (1, 255, False), (1, 200, True), (2, 5, False)]
)
def test_bytes_outside_a_narrower_range_are_seen_in_any_channel(channel: int, value: int, fits: bool) -> None:
    narrow = spec("UINT8", low=(0.0, 0.0, 16.0), high=(255.0, 200.0, 255.0))
    assert uncheckable_rows(image_with(channel, value, "NCHW", np.uint8), narrow)[0].tolist() == [fits]


def test_each_row_is_told_its_own_reason() -> None:
    images = np.concatenate([image_with(0, value, "NCHW") for value in (0.2, np.nan, 7.0, -np.inf)])
    mask, reasons = uncheckable_rows(images, spec())
    assert mask.tolist() == [True, False, False, False]
    assert {row: reason.value for row, (reason, _) in reasons.items()} == {
        1: "non_finite",
        2: "out_of_range",
        3: "non_finite",
    }
    assert reasons[2][1] == "holds values from 0.5 to 7, outside the calibrated range 0 to 1"
