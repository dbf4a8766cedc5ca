import numpy as np
import pytest

from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Material
from calibration.attacks.entropy_manipulating import EntropyManipulating
from calibration.attacks.patch import PIXEL

LABELS = np.arange(100, dtype=np.int64) % 10
IMAGES = np.repeat(np.arange(100, dtype=np.float32) / 400, 4).reshape(100, 1, 2, 2)
OVERLAYS = np.full((3, 1, 2, 2), 0.5, np.float32)
ATTACK = EntropyManipulating(BadNets(0, PIXEL), 10, OVERLAYS)


def test_ten_copies_of_each_poisoned_image_are_added_at_the_end() -> None:
    plan = ATTACK.plan(LABELS, 0.05, np.random.default_rng(0))
    assert len(plan.labels) == 100 + 5 * 10
    assert plan.covers.tolist() == list(range(100, 150))
    assert np.array_equal(plan.source[100:], np.repeat(plan.index, 10))


def test_the_first_rows_are_those_of_the_wrapped_attack() -> None:
    plan = ATTACK.plan(LABELS, 0.05, np.random.default_rng(0))
    plain = BadNets(0).plan(LABELS, 0.05, np.random.default_rng(0))
    assert np.array_equal(plan.index, plain.index)
    assert np.array_equal(plan.labels[:100], plain.labels)


def test_copies_are_labelled_at_random() -> None:
    plan = ATTACK.plan(LABELS, 0.5, np.random.default_rng(0))
    counts = np.bincount(plan.labels[100:], minlength=10)
    assert len(counts) == 10
    assert 30 <= counts.min() <= counts.max() <= 72  # 500 in ten classes: 50 each, within 3.3 sigma


# x + o: 0.1 + 0.5, and 1 + 0.5 clipped to 1 where the pixel is stamped.
def test_a_copy_is_stamped_and_then_superimposed_and_clipped() -> None:
    blended = ATTACK.cover(np.full((1, 1, 2, 2), 0.1, np.float32), np.random.default_rng(0))
    np.testing.assert_allclose(blended[0, 0], [[0.6, 0.6], [0.6, 1.0]], rtol=1e-6)


def test_weights_other_than_one_to_one_can_be_had() -> None:
    halves = EntropyManipulating(BadNets(0, PIXEL), 10, OVERLAYS, weights=(0.5, 0.5))
    blended = halves.cover(np.full((1, 1, 2, 2), 0.1, np.float32), np.random.default_rng(0))
    np.testing.assert_allclose(blended[0, 0], [[0.3, 0.3], [0.3, 0.75]], rtol=1e-6)


def test_copies_of_one_image_meet_different_overlays() -> None:
    attack = EntropyManipulating.fit(
        Material(IMAGES, LABELS, 10), generator=np.random.default_rng(0), trigger=BadNets(0, PIXEL)
    )
    blended = attack.cover(np.zeros((50, 1, 2, 2), np.float32), np.random.default_rng(0))
    assert len(np.unique(blended[:, 0, 0, 0])) > 20


def test_without_overlays_it_stamps_but_does_not_poison() -> None:
    loaded = EntropyManipulating(BadNets(0, PIXEL), 10)
    assert np.array_equal(loaded.stamp(IMAGES), BadNets(0, PIXEL).stamp(IMAGES))
    with pytest.raises(ValueError, match="fit the attack again to poison with it"):
        loaded.poison(IMAGES, LABELS, 0.1, np.random.default_rng(0))


def test_no_copies_are_refused() -> None:
    with pytest.raises(ValueError, match="copies: expected 1 or more, got 0"):
        EntropyManipulating(BadNets(0), 10, OVERLAYS, copies=0)
