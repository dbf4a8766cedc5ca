"""Generative distribution modelling: which generator, which images, which place; and that it helps."""

import numpy as np
import pytest
import torch

from calibration.attacks.tensors import arrays_of
from calibration.errors import DataError
from calibration.repair.base import Sitting, accuracy
from calibration.repair.gdm import Counted, GenerativeModelling, each_alone, put_on
from calibration.scan.patch_generator import Generator, PatchDistribution, Where
from tests.calibration.backdoored_nets import TARGET
from tests.calibration.repair_corner import attacked, corner_net, corner_supplies, corners_of, seeded

QUICK = {"epochs": 2, "batch": 10, "precision": "float32", "share": 0.25, "rate": 0.001}


def of_brightness(
    *values: float, where: Where = (6, 6), size: int = 2, channels: int = 1
) -> PatchDistribution:
    """One generator for each value, which makes patches of that brightness of any noise."""
    members = []
    for value in values:
        net = Generator(channels, size, chunk=1, width=2)
        torch.nn.init.zeros_(net.last.weight)
        torch.nn.init.constant_(net.last.bias, float(np.log(value / (1 - value))))
        members.append(arrays_of(net))
    low, high = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    betas = tuple(0.9 for _ in values)
    return PatchDistribution(TARGET, betas, tuple(members), channels, size, 1, 2, 0.0, where, low, high)


def test_generators_take_turns_an_epoch_each() -> None:
    counted, seen = Counted(corner_net()), []
    finish = put_on([of_brightness(0.25, 0.75)], 1.0, counted, steps=3)
    for _ in range(9):
        done = finish(torch.zeros(4, 1, 8, 8), torch.arange(4), seeded())
        seen.append(round(float(corners_of(done).mean()), 5))
        counted.count()
    assert seen == [0.25] * 3 + [0.75] * 3 + [0.25] * 3


def test_the_turn_is_part_of_the_checkpoint() -> None:
    first, second = Counted(corner_net()), Counted(corner_net())
    for _ in range(5):
        first.count()
    second.load_state_dict(first.state_dict())
    assert int(second.steps) == 5


def test_an_image_gets_a_patch_with_the_probability_asked_for() -> None:
    count, share = 4000, 0.01
    finish = put_on([of_brightness(0.5)], share, Counted(corner_net()), steps=1)
    done = finish(torch.zeros(count, 1, 8, 8), torch.arange(count), seeded())
    patched = (done != 0).flatten(1).sum(1)
    assert set(patched.tolist()) == {0, 4}
    assert abs(int((patched > 0).sum()) - count * share) < 4 * (count * share) ** 0.5


def test_all_patches_of_a_batch_lie_in_one_place_and_batches_in_several() -> None:
    finish = put_on([of_brightness(0.5, where="anywhere")], 0.5, Counted(corner_net()), steps=1)
    places = set()
    for seed in range(8):
        done = finish(torch.zeros(16, 1, 8, 8), torch.arange(16), seeded(seed)) != 0
        patched = done[done.flatten(1).any(1)]
        assert len(patched) > 1
        assert (patched == patched[:1]).all()
        places.add(tuple(patched[0].nonzero()[0].tolist()))
    assert len(places) > 3


def test_of_two_distributions_each_image_draws_one() -> None:
    finish = put_on(
        [of_brightness(0.25, where=(0, 0)), of_brightness(0.75)], 1.0, Counted(corner_net()), steps=1
    )
    done = finish(torch.zeros(64, 1, 8, 8), torch.arange(64), seeded())
    first, second = done[:, 0, 0, 0] > 0, done[:, 0, 7, 7] > 0
    assert (first ^ second).all()
    assert 16 < int(first.sum()) < 48


def test_a_generator_alone_makes_its_own_patches() -> None:
    alone = each_alone(of_brightness(0.25, 0.75))
    assert [round(float(one.sample(3, seeded()).mean()), 5) for one in alone] == [0.25, 0.75]


def test_the_trigger_is_unlearned_from_patches_like_it() -> None:
    supplies, model = corner_supplies(distributions={TARGET: of_brightness(0.9, 0.99)}), corner_net()
    assert attacked(model, supplies) == 1.0
    done = GenerativeModelling(**QUICK).repair(model, supplies, generator=seeded(), sitting=Sitting())
    assert attacked(done.model, supplies) < 0.05
    assert accuracy(done.model, supplies.held) > 0.95
    assert dict(done.facts) == {"distributions": 1.0, "generators": 2.0, "share": 0.25}


@pytest.mark.parametrize(
    ("learned", "words"),
    [
        (of_brightness(0.5, channels=3), "1 channels"),
        (of_brightness(0.5, size=9), "fit.*8 pixels"),
        (of_brightness(0.5, where=(7, 7)), "fit.*row up to 6"),
    ],
)
def test_a_distribution_for_other_images_is_refused(learned: PatchDistribution, words: str) -> None:
    supplies = corner_supplies(distributions={TARGET: learned})
    with pytest.raises(DataError, match=f"gdm needs a distribution.*{words}"):
        GenerativeModelling().repair(corner_net(), supplies, generator=seeded(), sitting=Sitting())


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.1}, {"epochs": 0}, {"momentum": 1.0}])
def test_an_option_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerativeModelling(**wrong)
