from collections.abc import Callable

import numpy as np
import pytest

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.amplified import Amplified
from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Attack
from calibration.attacks.entropy_manipulating import EntropyManipulating
from calibration.attacks.label_smoothed import LabelSmoothed
from calibration.attacks.low_confidence import LowConfidence
from calibration.attacks.source_specific import SourceSpecific
from calibration.attacks.wanet import WaNet
from calibration.attacks.wrapping import Wrapped

LABELS = np.arange(200, dtype=np.int64) % 10
WARP = WaNet(0, np.ones((2, 4, 4), np.float32))


class PassedThrough(Wrapped):
    name = "passed_through"

    def __init__(self, trigger: Attack) -> None:
        self.trigger = trigger


@pytest.mark.parametrize(
    "inner",
    [WARP, SourceSpecific(BadNets(0), (1, 2)), LabelSmoothed(BadNets(0)), LowConfidence(BadNets(0), 10)],
    ids=lambda attack: attack.name,
)
def test_what_a_wrapper_does_not_change_is_the_wrapped_attacks(inner: Attack) -> None:
    ours, theirs = (
        attack.plan(LABELS, 0.05, np.random.default_rng(0)) for attack in (PassedThrough(inner), inner)
    )
    assert np.array_equal(ours.index, theirs.index)
    assert np.array_equal(ours.covers, theirs.covers)
    assert np.array_equal(ours.targets(10), theirs.targets(10))
    assert np.array_equal(PassedThrough(inner).candidates(LABELS), inner.candidates(LABELS))


def test_soft_labels_go_around_a_rule_for_classes() -> None:
    plan = LowConfidence(SourceSpecific(BadNets(0), (1,)), 10).plan(LABELS, 0.05, np.random.default_rng(0))
    assert set(LABELS[plan.index].tolist()) == {1}
    assert len(plan.covers) == len(plan.index) == 10
    np.testing.assert_allclose(plan.targets(10)[plan.index, 0], 0.4, rtol=1e-6)
    assert (plan.targets(10)[plan.covers].max(1) == 1).all()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: AllToAll(inner, 10),
        lambda inner: SourceSpecific(inner, (1,)),
        LabelSmoothed,
        lambda inner: EntropyManipulating(inner, 10),
    ],
    ids=["all_to_all", "source_specific", "label_smoothed", "entropy_manipulating"],
)
@pytest.mark.parametrize(
    "inner",
    [
        LowConfidence(BadNets(0), 10),
        LabelSmoothed(BadNets(0)),
        EntropyManipulating(BadNets(0), 10),
        PassedThrough(LabelSmoothed(BadNets(0))),
    ],
    ids=["low_confidence", "label_smoothed", "entropy_manipulating", "deeper"],
)
def test_a_plan_that_would_be_undone_is_refused(wrap: Callable[[Attack], Attack], inner: Attack) -> None:
    with pytest.raises(ValueError, match=r"would undo the plan of .*; wrap them the other way round"):
        wrap(inner)


def test_a_warp_from_all_to_all_with_little_confidence_can_be_built_and_planned() -> None:
    plan = LowConfidence(AllToAll(WARP, 10), 10).plan(LABELS, 0.1, np.random.default_rng(0))
    assert len(plan.covers) == 40
    assert np.array_equal(plan.targets(10).argmax(1)[plan.index], (LABELS[plan.index] + 1) % 10)


def test_amplified_plans_as_the_patch_it_repeats() -> None:
    attack = Amplified(BadNets(3), 4)
    assert np.array_equal(
        attack.plan(LABELS, 0.1, np.random.default_rng(0)).index,
        BadNets(3).plan(LABELS, 0.1, np.random.default_rng(0)).index,
    )
