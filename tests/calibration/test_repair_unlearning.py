"""Unlearning: who is stamped with what, and that the trigger is unlearned."""

import dataclasses

import numpy as np
import pytest
import torch

from calibration.attacks.badnets import BadNets
from calibration.attacks.inverted import Inverted
from calibration.errors import DataError
from calibration.repair.base import Sitting, accuracy, stamped
from calibration.repair.stamping import fingerprint_of, hand_out, stamps_of, with_grids
from calibration.repair.unlearning import Unlearning, put_on
from tests.calibration.repair_corner import (
    attacked,
    corner_net,
    corner_supplies,
    corner_trigger,
    corners_of,
    seeded,
)

QUICK = {"epochs": 2, "batch": 10, "rate": 0.001, "precision": "float32"}


def noise(count: int = 6, channels: int = 2, side: int = 5) -> torch.Tensor:
    return torch.rand((count, channels, side, side), generator=seeded(1)) * 3 - 1


def found(**parts: np.ndarray) -> Inverted:
    bounds = {"low": np.array([-1, -0.5], np.float32), "high": np.array([1, 1.5], np.float32)}
    return Inverted(0, **parts, **bounds)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize(
    "trigger",
    [
        found(mask=numbers(1, 5, 5), pattern=numbers(2, 5, 5, seed=1)),
        found(addition=numbers(2, 5, 5) - 0.5),
        found(mask=numbers(1, 5, 5), pattern=numbers(2, 5, 5, seed=1), addition=numbers(2, 5, 5, seed=2)),
        found(displacement=numbers(2, 5, 5)),
        Inverted(0, mask=numbers(1, 5, 5), pattern=numbers(2, 5, 5)),
        BadNets(0),
    ],
)
def test_a_trigger_looks_the_same_as_tensors_and_as_arrays(trigger: object) -> None:
    images = noise(channels=3) if isinstance(trigger, BadNets) else noise()
    (stamp,) = stamps_of([trigger], images)
    assert torch.equal(stamp(images), stamped(trigger, images))
    assert not torch.equal(stamp(images), images)


def test_a_patch_is_followed_by_its_grids_and_what_is_no_patch_by_none() -> None:
    small = np.zeros((1, 12, 12), np.float32)
    small[0, 10:, 10:] = 1.0
    patch = Inverted(0, mask=small, pattern=numbers(2, 12, 12))
    added = Inverted(0, addition=numbers(2, 12, 12))
    all_three = with_grids([patch, added], noise(side=12))
    assert [all_three[0], all_three[3]] == [patch, added]
    shown = [stamped(one, torch.zeros(1, 2, 12, 12))[0, 0].count_nonzero().item() for one in all_three[:3]]
    assert shown == [4, 16, 36]
    assert len(with_grids([Inverted(0, mask=small + 1 - small, pattern=small)], noise(side=12))) == 1


def test_a_trigger_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"inverted.*images of this size"):
        stamps_of([corner_trigger(9)], noise(channels=1))


def test_triggers_are_dealt_in_turn_and_the_other_rows_left_alone() -> None:
    images = torch.zeros(6, 1, 1, 1)
    stamps = [lambda batch, nth=nth: batch + nth for nth in (1, 2, 3)]
    dealt = hand_out(images, torch.tensor([5, 0, 2, 3]), stamps, 1)
    assert dealt.flatten().tolist() == [3, 0, 1, 2, 0, 2]
    assert hand_out(images, torch.tensor([4]), stamps, 2).flatten().tolist() == [0, 0, 0, 0, 3, 0]
    assert not images.any()


@pytest.mark.parametrize(("share", "expected"), [(0.2, 4), (0.01, 1), (1.0, 20)])
def test_that_share_of_each_batch_is_stamped(share: float, expected: int) -> None:
    images, finish = torch.zeros(20, 1, 8, 8), put_on([lambda batch: batch + 1], share)
    for seed in range(3):
        done = finish(images, torch.arange(20), seeded(seed))
        assert (done.flatten(1) == 1).all(1).sum() == (done != 0).flatten(1).any(1).sum() == expected


def test_all_triggers_get_their_turn_where_a_batch_has_room_for_one() -> None:
    finish = put_on([lambda batch, nth=nth: batch + nth for nth in (1, 2, 3)], 0.25)
    seen = {int(finish(torch.zeros(4, 1, 1, 1), torch.arange(4), seeded(seed)).sum()) for seed in range(20)}
    assert seen == {1, 2, 3}


def test_the_trigger_is_unlearned_and_not_by_clean_images_alone() -> None:
    supplies, model = corner_supplies(triggers=(corner_trigger(),)), corner_net()
    assert attacked(model, supplies) == 1.0
    done, control = (
        Unlearning(share=share, **QUICK).repair(model, supplies, generator=seeded(), sitting=Sitting())
        for share in (0.2, 0.0)
    )
    assert attacked(done.model, supplies) < 0.05
    assert attacked(control.model, supplies) > 0.9
    assert min(accuracy(one.model, supplies.held) for one in (done, control)) > 0.95
    assert dict(done.facts) == {"triggers": 1.0, "share": 0.2}
    assert dict(control.facts) == {"triggers": 0.0, "share": 0.0}


def test_without_a_share_no_trigger_is_needed_or_used() -> None:
    bare, given = corner_supplies(), corner_supplies(triggers=(corner_trigger(),))
    first, second = (
        Unlearning(share=0.0, **QUICK).repair(corner_net(), one, generator=seeded(), sitting=Sitting())
        for one in (bare, given)
    )
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))
    with pytest.raises(DataError, match=r"unlearning needs a trigger.*set share to 0"):
        Unlearning().repair(corner_net(), bare, generator=seeded(), sitting=Sitting())


def test_another_trigger_or_share_is_another_stage() -> None:
    images = corner_supplies().train.images
    other = dataclasses.replace(corner_trigger(), pattern=np.full((1, 8, 8), 0.5, np.float32))
    assert fingerprint_of([other], images) != fingerprint_of([corner_trigger()], images)
    assert (corners_of(stamped(other, images)) == 0.5).all()
    told = {
        Unlearning(share=share)._hooks(corner_supplies(triggers=(trigger,))).identity
        for share in (0.1, 0.2)
        for trigger in (corner_trigger(), other)
    }
    assert len(told) == 4


@pytest.mark.parametrize("wrong", [{"share": 1.1}, {"share": -0.1}, {"epochs": 0}, {"rate": -1.0}])
def test_an_option_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Unlearning(**wrong)
