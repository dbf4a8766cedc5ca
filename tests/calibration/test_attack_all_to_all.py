import numpy as np
import pytest

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Attack
from calibration.attacks.sig import Sig
from calibration.attacks.source_specific import SourceSpecific
from calibration.attacks.wanet import WaNet

LABELS = np.arange(60, dtype=np.int64) % 3


def test_every_class_moves_on_by_one_and_the_last_becomes_the_first() -> None:
    assert AllToAll(BadNets(0), 3).target_of(np.array([0, 1, 2])).tolist() == [1, 2, 0]


def test_success_is_measured_on_every_class_the_wrapped_target_too() -> None:
    assert AllToAll(BadNets(0), 3).applies_to(LABELS).all()


def test_every_class_is_poisoned() -> None:
    plan = AllToAll(BadNets(0), 3).plan(LABELS, 0.5, np.random.default_rng(0))
    assert set(LABELS[plan.index].tolist()) == {0, 1, 2}
    assert np.array_equal(plan.labels[plan.index], (LABELS[plan.index] + 1) % 3)


def test_covers_are_those_of_the_wrapped_trigger() -> None:
    attack = AllToAll(WaNet(0, np.ones((2, 4, 4), np.float32), cover_ratio=2.0), 3)
    assert len(attack.plan(LABELS, 0.1, np.random.default_rng(0)).covers) == 12


@pytest.mark.parametrize("inner", [SourceSpecific(BadNets(0), (1,)), AllToAll(BadNets(0), 10)])
def test_a_rule_for_classes_within_is_not_undone_in_silence(inner: Attack) -> None:
    with pytest.raises(ValueError, match=f"all_to_all would undo the rule of {inner.name} for classes"):
        AllToAll(inner, 10)


def test_a_trigger_that_keeps_labels_and_a_single_class_are_refused() -> None:
    with pytest.raises(ValueError, match="all_to_all relabels what it poisons, and sig must not"):
        AllToAll(Sig(0), 3)
    with pytest.raises(ValueError, match="classes: expected 2 or more, got 1"):
        AllToAll(BadNets(0), 1)
