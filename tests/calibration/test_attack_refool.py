from typing import Any

import numpy as np
import pytest

from calibration.attacks.base import Material
from calibration.attacks.refool import Refool, blurred_reflection, ghost_reflection, window

GENERATOR = np.random.default_rng(0)
REFLECTIONS = GENERATOR.random((6, 3, 8, 8), np.float32)
LABELS = np.arange(40, dtype=np.int64) % 4


def plane(value: float) -> np.ndarray:
    return np.full((1, 6, 6), value, np.float32)


def test_a_ghost_is_the_light_and_the_light_moved() -> None:
    light = np.zeros((1, 3, 3), np.float32)
    light[0, 0, 0] = 1
    ghost = ghost_reflection(light, 0.25, down=1, right=2)
    assert ghost[0].tolist() == [[0.25, 0, 0], [0, 0, 0.75], [0, 0, 0]]


def test_a_ghost_with_no_offset_is_the_light() -> None:
    assert np.allclose(ghost_reflection(REFLECTIONS[0], 0.3, 0, 0), REFLECTIONS[0])


def test_what_does_not_burn_out_is_only_blurred() -> None:
    np.testing.assert_allclose(blurred_reflection(plane(0.2), plane(0.5), 1.0, 1.1), 0.5, atol=1e-6)


# 0.8 + 0.5 is 0.3 too bright everywhere; 1.1 times that comes off: 0.5 - 0.33.
def test_what_burns_out_is_dimmed_by_its_excess() -> None:
    np.testing.assert_allclose(blurred_reflection(plane(0.8), plane(0.5), 1.0, 1.1), 0.17, atol=1e-5)


# exp(-9 / 4) = 0.105399 at the middle of an edge, its square in a corner.
def test_the_spot_light_is_1_in_the_middle_and_fades_to_the_edges() -> None:
    spot = window(5, 5)
    assert spot[2, 2] == 1
    np.testing.assert_allclose([spot[0, 2], spot[0, 0]], [0.105399, 0.105399**2], rtol=1e-5)


# Half of no light and half of full light, back to pixel values: 0.5 ** (1 / 2.2).
def test_light_is_mixed_not_pixel_values() -> None:
    attack = Refool(
        0,
        np.ones((1, 1, 4, 4), np.float32),
        ghost_share=1.0,
        alpha=(0.5, 0.5),
        ghost_weight=(0.5, 0.5),
        ghost_offset=(0, 0),
    )
    stamped = attack.stamp(np.zeros((1, 1, 4, 4), np.float32))
    np.testing.assert_allclose(stamped, 0.72974, atol=1e-5)


# No light of its own, full light reflected, alpha 0.5: 0.75 of it in the middle, 0.75 ** (1 / 2.2), and in
# the corner 0.75 exp(-9 / 2), which is 0.0083317: to the same power 0.11348.
def test_a_blurred_reflection_shines_through_the_spot_light() -> None:
    attack = Refool(0, np.ones((1, 1, 5, 5), np.float32), ghost_share=0.0, alpha=(0.5, 0.5))
    stamped = attack.stamp(np.zeros((1, 1, 5, 5), np.float32))[0, 0]
    np.testing.assert_allclose([stamped[2, 2], stamped[0, 0]], [0.87743, 0.11348], atol=1e-4)


# One bright pixel in the corner, moved by one: a is at most a half, so that the larger share is 1 - a.
def test_either_of_a_ghosts_two_copies_may_be_the_brighter() -> None:
    light = np.zeros((1, 1, 4, 4), np.float32)
    light[0, 0, 0, 0] = 1
    attack = Refool(0, light, ghost_share=1.0, ghost_weight=(0.2, 0.2), ghost_offset=(1, 1), alpha=(0.5, 0.5))
    images = np.zeros((20, 1, 4, 4), np.float32)
    images[:, 0, 3, 0] = np.arange(20, dtype=np.float32) / 255
    copies = attack.stamp(images)[:, 0, (0, 1), (0, 1)] ** 2.2
    np.testing.assert_allclose(copies.sum(1), 0.5, atol=1e-5)
    assert np.unique(copies[:, 0].round(4)).tolist() == pytest.approx([0.1, 0.4])


def test_different_images_get_different_reflections() -> None:
    images = np.repeat(np.arange(20, dtype=np.float32)[:, None, None, None] / 255, 3, axis=1)
    images = np.broadcast_to(images, (20, 3, 8, 8)).copy()
    attack = Refool(0, REFLECTIONS)
    brightness = (attack.stamp(images) ** 2.2).mean((1, 2, 3))
    assert len(np.unique(brightness.round(4))) > 10


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_blurs_and_ghosts_both_leave_the_picture_most_of_its_light(share: float) -> None:
    images = GENERATOR.random((8, 3, 8, 8), np.float32)
    stamped = Refool(0, REFLECTIONS, ghost_share=share).stamp(images)
    assert (stamped**2.2 >= 0.55 * images**2.2 - 1e-5).all()


def test_labels_are_kept_by_default() -> None:
    plan = Refool(1, REFLECTIONS).plan(LABELS, 0.4, np.random.default_rng(0))
    assert len(plan.index) == 4
    assert np.array_equal(plan.labels, LABELS)


def test_the_variant_that_relabels_poisons_other_classes_at_a_rate_of_all() -> None:
    plan = Refool(1, REFLECTIONS, clean_label=False).plan(LABELS, 0.4, np.random.default_rng(0))
    assert len(plan.index) == 16
    assert 1 not in LABELS[plan.index]
    assert set(plan.labels[plan.index].tolist()) == {1}


def test_reflections_are_a_draw_from_the_images_handed_in() -> None:
    material = Material(REFLECTIONS, np.zeros(6, np.int64), 10, others=REFLECTIONS)
    attack = Refool.fit(material, generator=np.random.default_rng(0), count=4)
    assert len(attack.reflections) == 4
    assert all(any(np.array_equal(one, other) for other in REFLECTIONS) for one in attack.reflections)


def test_no_reflections_are_refused() -> None:
    with pytest.raises(ValueError, match="reflections: expected at least one image to reflect"):
        Refool(0, REFLECTIONS[:0])
    with pytest.raises(ValueError, match="refool needs images to reflect, got none"):
        Refool.fit(Material(REFLECTIONS, np.zeros(6, np.int64), 10), generator=np.random.default_rng(0))


def test_images_of_another_shape_than_the_reflections_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the reflections' shape \(3, 8, 8\), got \(3, 9, 9\)"):
        Refool(0, REFLECTIONS).stamp(np.zeros((1, 3, 9, 9), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ghost_offset": (-2, 3)}, r"ghost_offset: expected a range within \[0, inf\], got -2 to 3"),
        ({"sigma": (2.0, 1.0)}, "sigma: expected a range"),
        ({"reflections": 255 * REFLECTIONS}, r"reflections: expected values in \[0, 1\], got up to 25"),
        ({"reflections": np.full_like(REFLECTIONS, np.nan)}, "reflections: .* got up to nan"),
    ],
)
def test_lengths_and_reflections_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Refool(**{"target_label": 0, "reflections": REFLECTIONS, **options})
