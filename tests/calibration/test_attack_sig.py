import numpy as np
import pytest

from calibration.attacks.sig import Sig

GREY = np.full((2, 3, 4, 32), 0.5, np.float32)
LABELS = np.arange(100, dtype=np.int64) % 10

# sin(2 pi 6 j / 32) for j = 0, 1, 2, 3, 4: the angles are 0, 67.5, 135, 202.5 and 270 degrees.
SINES = [0.0, 0.92388, 0.70711, -0.38268, -1.0]


def test_six_periods_of_a_sine_go_across_the_image() -> None:
    shift = (Sig(0).stamp(GREY) - GREY) * 255 / 40
    np.testing.assert_allclose(shift[0, 0, 0, :5], SINES, atol=1e-5)
    np.testing.assert_allclose(shift[:, :, :, 16:], shift[:, :, :, :16], atol=1e-5)  # 16 columns, 3 periods


def test_every_row_channel_and_image_gets_the_same() -> None:
    shift = Sig(0).stamp(GREY) - GREY
    assert np.array_equal(shift, np.broadcast_to(shift[0, 0, 0], shift.shape))


def test_values_are_clipped() -> None:
    stamped = Sig(0, delta=1.0).stamp(GREY)
    assert stamped.min() == 0
    assert stamped.max() == 1


def test_training_images_may_carry_a_fainter_sine() -> None:
    attack = Sig(0, delta=0.2, delta_train=0.1)
    np.testing.assert_allclose(attack.stamp(GREY) - GREY, 2 * (attack.imprint(GREY) - GREY), atol=1e-6)


def test_a_rate_is_a_share_of_the_target_class() -> None:
    plan = Sig(3).plan(LABELS, 0.5, np.random.default_rng(0))
    assert len(plan.index) == 5
    assert set(LABELS[plan.index].tolist()) == {3}


# BackdoorBench's "10 %": of ten balanced classes that is the target class, to the last image.
def test_a_tenth_of_all_is_the_whole_of_one_class_in_ten() -> None:
    plan = Sig(3, rate_of="all").plan(LABELS, 0.1, np.random.default_rng(0))
    assert plan.index.tolist() == np.flatnonzero(LABELS == 3).tolist()


def test_more_of_all_than_the_class_holds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.2 of 100 images is 20, but only 10 can be poisoned"):
        Sig(3, rate_of="all").plan(LABELS, 0.2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"delta": 40.0}, r"delta: expected an amplitude in \(0, 1\], got 40"), ({"frequency": 0.0}, "got 0")],
)
def test_a_sine_that_makes_no_sense_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sig(0, **options)
