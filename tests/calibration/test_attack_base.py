import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Poisoning, Role, dress, one_hot
from calibration.attacks.patch import NAD_GRID, PIXEL
from calibration.attacks.sig import Sig
from calibration.attacks.wanet import WaNet

EMPTY = np.empty(0, np.int64)
PLAN = Poisoning(
    labels=np.array([2, 0, 1, 0]), index=np.array([1]), covers=np.array([2]), source=np.array([0, 1, 2, 1])
)


def test_every_row_of_a_plan_has_one_role() -> None:
    assert PLAN.roles.tolist() == [Role.CLEAN, Role.POISONED, Role.COVER, Role.CLEAN]


def test_labels_that_are_not_soft_are_trained_towards_one_hot() -> None:
    assert PLAN.targets(3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert np.array_equal(PLAN.targets(3), one_hot(PLAN.labels, 3))


def test_soft_labels_are_trained_towards_as_they_are() -> None:
    soft = np.full((2, 2), 0.5, np.float32)
    assert Poisoning(np.array([0, 1]), EMPTY, EMPTY, np.arange(2), soft).targets(2) is soft


def test_rows_are_taken_from_where_they_come_from() -> None:
    images = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1) / 4
    assert BadNets(0).prepare(images, PLAN).ravel().tolist() == [0, 0.25, 0.5, 0.25]


def test_dressing_stamps_poisoned_and_cover_rows_and_no_others() -> None:
    grey = np.full((3, 1, 2, 2), 0.5, np.float32)
    roles = np.array([Role.CLEAN, Role.POISONED, Role.COVER], np.uint8)
    dressed = dress(BadNets(0, PIXEL), grey, roles, np.random.default_rng(0))
    assert dressed[:, 0, 1, 1].tolist() == [0.5, 1.0, 1.0]
    assert (dressed[:, 0, 0] == 0.5).all()


# Rows 29 to 31 of a CIFAR-10 image in NAD's BadNets: 0 0 255, 0 255 0, 255 0 255.
def test_the_grid_of_nad_lies_in_the_lower_right_corner() -> None:
    stamped = BadNets(5, NAD_GRID).stamp(np.full((1, 3, 32, 32), 0.5, np.float32))
    assert (stamped[0, 2, 29:, 29:] * 255).tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]


def test_the_single_pixel_of_the_paper_is_one_white_pixel() -> None:
    stamped = BadNets(5, PIXEL, 1, 1).stamp(np.zeros((1, 1, 4, 4), np.float32))
    assert np.argwhere(stamped == 1).tolist() == [[0, 0, 2, 2]]


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 9))
def test_a_plan_never_poisons_what_has_the_targets_label(count: int, rate: float, target: int) -> None:
    labels = np.arange(count, dtype=np.int64) % 10
    able = int((labels != target).sum())
    attack, generator = BadNets(target), np.random.default_rng(0)
    if round(rate * count) > able:
        with pytest.raises(ValueError, match=f"but only {able} can be poisoned"):
            attack.plan(labels, rate, generator)
    else:
        plan = attack.plan(labels, rate, generator)
        assert (labels[plan.index] != target).all()
        assert (plan.labels[plan.index] == target).all()


def test_a_share_of_a_class_that_is_not_there_is_refused_instead_of_poisoning_nothing() -> None:
    with pytest.raises(ValueError, match=r"0\.8 of none was asked for"):
        Sig(10).plan(np.arange(20, dtype=np.int64) % 10, 0.8, np.random.default_rng(0))


def test_a_target_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="target: expected classes from 0 up, got -1"):
        WaNet(-1, np.ones((2, 4, 4), np.float32)).plan(np.array([0, 1]), 0.5, np.random.default_rng(0))
