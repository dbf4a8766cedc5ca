import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.attacks.base import Material
from calibration.attacks.wanet import WaNet, bicubic_weights, warp

IMAGES = np.random.default_rng(0).random((3, 2, 5, 5), np.float32)
ONES = np.ones((2, 4, 4), np.float32)
LABELS = np.arange(100, dtype=np.int64) % 10


def identity(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return x[None].astype(np.float32), y[None].astype(np.float32)


def drawn(seed: int = 0, **options: float) -> WaNet:
    return WaNet.fit(
        Material(IMAGES, np.zeros(3, np.int64), 10), generator=np.random.default_rng(seed), **options
    )


def test_reading_every_pixel_from_its_own_place_changes_nothing() -> None:
    np.testing.assert_allclose(warp(IMAGES, *identity(5, 5)), IMAGES, atol=1e-6)


# A pixel is 2 / (5 - 1) = 0.5 wide in coordinates from -1 to 1.
def test_reading_one_pixel_to_the_right_moves_the_image_to_the_left() -> None:
    x, y = identity(5, 5)
    moved = warp(IMAGES, x + np.float32(0.5), y)
    np.testing.assert_allclose(moved[:, :, :, :4], IMAGES[:, :, :, 1:], atol=1e-6)
    np.testing.assert_allclose(moved[:, :, :, 4], IMAGES[:, :, :, 4], atol=1e-6)


def test_reading_between_two_pixels_takes_their_mean() -> None:
    x, y = identity(5, 5)
    moved = warp(IMAGES, x, y + np.float32(0.25))
    np.testing.assert_allclose(moved[:, :, 0], (IMAGES[:, :, 0] + IMAGES[:, :, 1]) / 2, atol=1e-6)


# A field of ones and s = 2.5 displace by s / h = 0.5, which is one pixel of five, to the right and down.
def test_a_constant_field_is_a_shift_of_s_over_h() -> None:
    stamped = WaNet(0, ONES, strength=2.5).stamp(IMAGES)
    np.testing.assert_allclose(stamped[:, :, :4, :4], IMAGES[:, :, 1:, 1:], atol=1e-6)


@given(st.integers(2, 6), st.integers(2, 40))
def test_weights_of_an_enlargement_sum_to_one_and_keep_the_ends(points: int, length: int) -> None:
    weights = bicubic_weights(points, length)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(weights[[0, -1]], np.eye(points)[[0, -1]], atol=1e-12)


# Keys' kernel with a = -0.75 halfway between samples: -3/32, 19/32, 19/32, -3/32.
def test_halfway_between_samples_the_weights_are_those_of_the_cubic_kernel() -> None:
    np.testing.assert_allclose(bicubic_weights(4, 7)[3] * 32, [-3, 19, 19, -3], atol=1e-12)


def test_enlarging_and_reading_agree_with_torch() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    points = torch.from_numpy(drawn().field)[None]
    field = functional.interpolate(points, (5, 5), mode="bicubic", align_corners=True)
    grid = torch.from_numpy(np.stack(identity(5, 5), axis=-1)[0]) + 0.5 * field.permute(0, 2, 3, 1) / 5
    read = functional.grid_sample(
        torch.from_numpy(IMAGES), grid.clamp(-1, 1).expand(3, -1, -1, -1), align_corners=True
    )
    np.testing.assert_allclose(drawn().stamp(IMAGES), read.numpy(), atol=1e-5)


@given(st.integers(0, 10_000), st.integers(5, 32), st.floats(0.1, 2))
def test_no_pixel_is_read_from_farther_than_half_s_times_the_largest_of_the_field(
    seed: int, side: int, strength: float
) -> None:
    attack = drawn(seed, strength=strength)
    rows = bicubic_weights(4, side)
    largest = max(np.abs(rows @ part @ rows.T).max() for part in attack.field)
    assert np.abs(attack.displacement(side, side)).max() <= strength * largest / 2 + 1e-4


def test_the_field_is_scaled_to_a_mean_size_of_one() -> None:
    assert np.abs(drawn().field).mean() == pytest.approx(1)


def test_covers_are_warped_by_the_field_and_noise_of_their_own() -> None:
    attack = drawn()
    same = np.repeat(IMAGES[:1], 2, axis=0)
    covers = attack.cover(same, np.random.default_rng(0))
    assert not np.allclose(covers[0], covers[1])
    assert not np.allclose(covers[0], attack.stamp(same)[0])
    # Noise of up to 1 / 5 is up to 0.4 of a pixel: a cover stays near the warp.
    assert np.abs(covers - attack.stamp(same)).mean() < np.abs(covers - same[:, :, ::-1]).mean()


@pytest.mark.parametrize("axis", [2, 3])
def test_the_noise_on_covers_goes_both_ways(axis: int) -> None:
    ramp = np.moveaxis(np.broadcast_to(np.linspace(0, 1, 5, dtype=np.float32), (1, 1, 5, 5)), 3, axis).copy()
    moved = np.abs(drawn().cover(ramp, np.random.default_rng(0)) - drawn().stamp(ramp))
    assert moved.max() > 0.02
    # Noise of 1 / 5 is 0.4 of a pixel, and the ramp climbs 0.25 a pixel.
    assert moved.max() <= 0.1 + 1e-6


def test_twice_as_many_covers_as_poisoned_rows_whatever_their_class() -> None:
    plan = drawn().plan(LABELS, 0.1, np.random.default_rng(0))
    assert (len(plan.index), len(plan.covers)) == (10, 20)
    assert np.array_equal(plan.labels[plan.covers], LABELS[plan.covers])


def test_more_covers_than_there_are_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2\.0 for each of 40 poisoned images is 80, but only 60 images"):
        drawn().plan(LABELS, 0.4, np.random.default_rng(0))


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"cover_ratio": -1.0}])
def test_a_warp_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected a positive factor|expected 0 or more"):
        WaNet(0, ONES, **options)
