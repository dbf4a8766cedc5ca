import numpy as np
import pytest

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.amplified import Amplified, amplified
from calibration.attacks.badnets import BadNets
from calibration.attacks.patch import PIXEL
from calibration.attacks.sig import Sig

BLACK = np.zeros((2, 1, 8, 8), np.float32)


def white(attack: Amplified, image: np.ndarray = BLACK) -> list[list[int]]:
    return np.argwhere(attack.stamp(image)[1, 0] == 1).tolist()


def test_four_copies_stand_in_the_corners() -> None:
    assert white(Amplified(BadNets(0, PIXEL), 4)) == [[0, 0], [0, 7], [7, 0], [7, 7]]


# Evenly from 0 to 7 is 0, 3.5 and 7; a half rounds to even.
def test_nine_copies_stand_between_them_and_in_the_middle_too() -> None:
    places = [0, 4, 7]
    assert white(Amplified(BadNets(0, PIXEL), 9)) == [[row, column] for row in places for column in places]


def test_copies_keep_the_patchs_distance_from_the_edges() -> None:
    attack = Amplified(BadNets(0, PIXEL, margin_bottom=1, margin_right=2), 4)
    assert white(attack) == [[1, 2], [1, 5], [6, 2], [6, 5]]


def test_each_copy_is_the_whole_patch() -> None:
    grey = np.full((1, 3, 32, 32), 0.5, np.float32)
    stamped = Amplified(BadNets(0), 9).stamp(grey)
    one = BadNets(0).stamp(grey)[0, :, 29:, 29:]
    for top in (0, 14, 29):
        for left in (0, 14, 29):
            assert np.array_equal(stamped[0, :, top : top + 3, left : left + 3], one)
    assert (stamped != 0.5).sum() == 9 * one.size


def test_training_images_carry_one_patch() -> None:
    assert np.array_equal(Amplified(BadNets(0), 9).imprint(BLACK), BadNets(0).stamp(BLACK))


def test_a_wrapped_patch_is_amplified_where_it_is() -> None:
    attack = amplified(AllToAll(BadNets(0, PIXEL), 10), 4)
    assert attack.target_of(np.array([9])).tolist() == [0]
    assert attack.stamp(BLACK).sum() == 2 * 4


def test_more_copies_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="9 copies of a patch 3 pixels long overlap within 8 pixels"):
        Amplified(BadNets(0), 9).stamp(BLACK)


@pytest.mark.parametrize("copies", [1, 5, -4])
def test_copies_that_make_no_grid_are_refused(copies: int) -> None:
    with pytest.raises(ValueError, match=r"expected a square number from 4 up \(4, 9, ...\), got"):
        amplified(BadNets(0), copies)


def test_a_trigger_that_is_no_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="only patches can be repeated, and sig has none"):
        amplified(Sig(0), 4)
