"""Triggers that a scan found."""

from pathlib import Path

import numpy as np
import pytest

from calibration.attacks.amplified import amplified
from calibration.attacks.inverted import Inverted
from calibration.trigger import load_trigger, save_trigger

IMAGES = np.random.default_rng(0).random((3, 2, 5, 6), np.float32)


def test_a_patch_is_mixed_in_by_its_mask() -> None:
    mask = np.zeros((1, 5, 6), np.float32)
    mask[0, 1, 2] = 0.25
    stamped = Inverted(1, mask=mask, pattern=np.ones((2, 5, 6), np.float32)).stamp(IMAGES)
    assert stamped[:, :, 1, 2] == pytest.approx(0.75 * IMAGES[:, :, 1, 2] + 0.25)
    stamped[:, :, 1, 2] = IMAGES[:, :, 1, 2]
    assert np.array_equal(stamped, IMAGES)


def test_an_addition_stays_within_the_range_of_each_channel() -> None:
    low, high = np.array([-1, 0], np.float32), np.array([0.5, 2], np.float32)
    trigger = Inverted(0, addition=np.full((2, 5, 6), 1.5, np.float32), low=low, high=high)
    stamped = trigger.stamp(IMAGES)
    assert np.all(stamped[:, 0] == 0.5)
    assert stamped[:, 1] == pytest.approx(np.minimum(IMAGES[:, 1] + 1.5, 2))


def test_a_displacement_of_one_pixel_reads_the_next_pixel() -> None:
    displacement = np.zeros((2, 5, 6), np.float32)
    displacement[0] = 1.0
    stamped = Inverted(0, displacement=displacement).stamp(IMAGES)
    assert stamped[..., :-1] == pytest.approx(IMAGES[..., 1:], abs=1e-6)
    assert stamped[..., -1] == pytest.approx(IMAGES[..., -1], abs=1e-6)


def test_it_is_measured_on_its_source_class_alone() -> None:
    labels = np.array([0, 1, 2, 1])
    assert Inverted(0, source_label=1).applies_to(labels).tolist() == [False, True, False, True]
    assert Inverted(1).applies_to(labels).tolist() == [True, False, True, False]


def test_all_its_parts_come_back_from_a_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    trigger = Inverted(
        2,
        5,
        draw.random((1, 5, 6), np.float32),
        draw.random((2, 5, 6), np.float32),
        draw.normal(size=(2, 5, 6)).astype(np.float32),
        draw.normal(size=(2, 5, 6)).astype(np.float32),
        np.array([-1, -2], np.float32),
        np.array([3, 4], np.float32),
    )
    save_trigger(trigger, tmp_path)
    loaded = load_trigger(tmp_path)
    assert isinstance(loaded, Inverted)
    assert (loaded.target_label, loaded.source_label) == (2, 5)
    assert np.array_equal(loaded.stamp(IMAGES), trigger.stamp(IMAGES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_label": -1}, "target_label: expected 0 or more, got -1"),
        ({"mask": np.zeros((1, 5, 6), np.float32)}, "expected both or neither"),
        (
            {"mask": np.full((1, 5, 6), 2, np.float32), "pattern": np.zeros((2, 5, 6), np.float32)},
            r"expected values in \[0, 1\], got 2.0 to 2.0",
        ),
    ],
)
def test_what_fits_no_image_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inverted(**{"target_label": 0, **change})


def test_parts_of_different_sizes_are_refused() -> None:
    with pytest.raises((ValueError, TypeError)):  # TypeError where types are checked, as in tests
        Inverted(0, addition=np.zeros((2, 4, 6), np.float32), displacement=np.zeros((2, 5, 6), np.float32))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(4, 4\) as the trigger has it, got \(5, 6\)"):
        Inverted(0, addition=np.zeros((2, 4, 4), np.float32)).stamp(IMAGES)


def test_a_patch_that_was_inverted_can_be_repeated_where_a_blurred_edge_is_left_behind() -> None:
    mask = np.zeros((1, 12, 12), np.float32)
    mask[:, 1:3, 8:11] = 1.0
    mask[:, 3, 8:11] = 0.2
    pattern = np.random.default_rng(4).random((3, 12, 12), np.float32) + 1
    trigger = Inverted(0, mask=mask, pattern=pattern, high=np.full(3, 2, np.float32))
    assert trigger.place(12, 12) == (slice(1, 3), slice(8, 11))
    blank = np.zeros((1, 3, 12, 12), np.float32)
    one = pattern[:, 1:3, 8:11]
    stamped = trigger.stamp_at(blank, 5, 0)[0]
    assert np.array_equal(stamped[:, 5:7, :3], one)
    assert np.count_nonzero(stamped) == one.size
    grid = amplified(trigger, 4).stamp(blank)[0]
    assert np.count_nonzero(grid) == 4 * one.size
    for top, left in ((1, 1), (1, 8), (9, 1), (9, 8)):
        assert np.array_equal(grid[:, top : top + 2, left : left + 3], one)


def test_only_a_patch_alone_can_be_put_elsewhere() -> None:
    mask, pattern = np.ones((1, 6, 6), np.float32), np.ones((1, 6, 6), np.float32)
    images = np.zeros((1, 1, 6, 6), np.float32)
    noisy = Inverted(0, mask=mask, pattern=pattern, addition=pattern)
    for trigger in (noisy, Inverted(0, addition=pattern)):
        with pytest.raises(ValueError, match="only a patch alone has a place"):
            amplified(trigger, 4).stamp(images)
    with pytest.raises(ValueError, match="overlap"):
        amplified(Inverted(0, mask=mask, pattern=pattern), 4).stamp(images)
    with pytest.raises(ValueError, match=r"expected \(6, 6\)"):
        Inverted(0, mask=mask, pattern=pattern).place(8, 8)
