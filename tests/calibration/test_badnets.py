import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from calibration.attacks.badnets import CHECKERBOARD, BadNets

GREY = np.full((200, 3, 8, 8), 0.5, np.float32)
LABELS = np.arange(200, dtype=np.int64) % 10


def poisoned(rate: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    done = BadNets(target_label=5).poison(GREY, LABELS, rate, np.random.default_rng(seed))
    return done.images, done.labels, done.index


def test_only_the_corner_changes_and_there_the_patch_lies() -> None:
    stamped = BadNets(5).stamp(GREY)
    assert np.array_equal(stamped[7, 1, 5:, 5:], np.array(CHECKERBOARD, np.float32))
    stamped[:, :, 5:, 5:] = 0.5
    assert np.array_equal(stamped, GREY)


def test_margins_move_the_patch_away_from_the_edges() -> None:
    stamped = BadNets(0, patch=((1.0, 0.0),), margin_bottom=2, margin_right=1).stamp(GREY[:1])
    changed = np.argwhere(stamped[0, 0] != 0.5).tolist()
    assert changed == [[5, 5], [5, 6]]
    assert stamped[0, :, 5, 5:7].tolist() == [[1.0, 0.0]] * 3


def test_stamping_leaves_its_input_as_it_was_and_its_type_too() -> None:
    images = GREY.copy()
    assert BadNets(5).stamp(images).dtype == np.float32
    assert np.array_equal(images, GREY)


def test_stamping_twice_is_stamping_once() -> None:
    once = BadNets(5).stamp(GREY)
    assert np.array_equal(BadNets(5).stamp(once), once)


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.1, 20), (0.9, 180)])
def test_the_rate_is_a_share_of_all_images(rate: float, count: int) -> None:
    images, labels, index = poisoned(rate)
    assert (len(images), len(labels), len(index)) == (200, 200, count)


def test_poisoned_rows_carry_the_patch_and_the_target_and_no_other_row_changes() -> None:
    images, labels, index = poisoned()
    rest = np.setdiff1d(np.arange(200), index)
    assert np.array_equal(images[index], BadNets(5).stamp(GREY[index]))
    assert set(labels[index].tolist()) == {5}
    assert np.array_equal(images[rest], GREY[rest])
    assert np.array_equal(labels[rest], LABELS[rest])


def test_images_of_the_target_class_are_never_poisoned() -> None:
    assert 5 not in LABELS[poisoned(0.9)[2]]


def test_poisoning_does_not_touch_the_arrays_it_was_given() -> None:
    images, labels = GREY.copy(), LABELS.copy()
    BadNets(5).poison(images, labels, 0.5, np.random.default_rng(0))
    assert np.array_equal(images, GREY)
    assert np.array_equal(labels, LABELS)


def test_the_generator_decides_which_rows() -> None:
    assert np.array_equal(poisoned(seed=1)[2], poisoned(seed=1)[2])
    assert not np.array_equal(poisoned(seed=1)[2], poisoned(seed=2)[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": ()}, "expected rows of one length"),
        ({"patch": ((1.0,), (1.0, 0.0))}, r"got lengths \[1, 2\]"),
        ({"patch": ((255.0,),)}, r"expected values in \[0, 1\], got 255.0"),
        ({"margin_right": -1}, "margin_right: expected 0 or more, got -1"),
        ({"target_label": -1}, "target_label: expected 0 or more, got -1"),
    ],
)
def test_a_trigger_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BadNets(**{"target_label": 5, **options})


def test_an_image_too_small_for_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least 3 x 4 pixels .* got 3 x 3"):
        BadNets(5, margin_right=1).stamp(np.zeros((1, 1, 3, 3), np.float32))


@pytest.mark.parametrize(("rate", "message"), [(1.5, "got 1.5"), (0.95, "190, but only 180")])
def test_a_rate_that_cannot_be_met_is_refused(rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        poisoned(rate)


def test_stamping_needs_no_torch() -> None:
    code = "import sys, calibration.attacks.badnets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
