"""The numbers that a repair is judged by, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Attack
from calibration.attacks.inverted import Inverted
from calibration.attacks.measure import asr, robust_accuracy
from calibration.attacks.patch import PIXEL
from calibration.errors import DataError
from calibration.evaluation.measuring import Known, Measured, Task, measure
from calibration.evaluation.numbers import accuracy_by_class, agreement, share, under_trigger

CLASSES = 5


def of(hits: int, total: int) -> np.ndarray:
    return np.arange(total) < hits


# Clopper and Pearson's ends where nothing or everything hits: 1 - (alpha/2)^(1/n) and (alpha/2)^(1/n).
def test_an_interval_of_none_or_all_has_one_open_end() -> None:
    none, everything = share(of(0, 10)), share(of(10, 10))
    assert (none.value, none.low, everything.value, everything.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(1 - 0.025**0.1, rel=1e-9)
    assert everything.low == pytest.approx(0.025**0.1, rel=1e-9)


# 0.2720 and 0.7280: Clopper and Pearson's 95 % interval of 10 in 20, as in any table.
def test_an_interval_is_clopper_and_pearsons() -> None:
    some = share(of(10, 20))
    assert (some.hits, some.of) == (10, 20)
    assert (round(some.low, 4), round(some.high, 4)) == (0.2720, 0.7280)


@pytest.mark.parametrize("true", [0.02, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_hold_the_true_share_as_often_as_they_say(true: float, confidence: float) -> None:
    chances = stats.binom.pmf(np.arange(31), 30, true)
    held = [share(of(hits, 30), confidence) for hits in range(31)]
    assert sum(chances[[one.low <= true <= one.high for one in held]]) >= confidence


def test_a_share_of_no_images_is_none() -> None:
    empty = share(of(0, 0))
    assert np.isnan(empty.value)
    assert (empty.low, empty.high) == (0, 1)


def test_accuracy_is_told_for_each_class_and_for_one_without_images() -> None:
    labels = np.array([0, 0, 0, 2, 2])
    shares = accuracy_by_class(np.array([0, 1, 0, 2, 0]), labels, 3)
    assert [(one.hits, one.of) for one in shares] == [(2, 3), (0, 0), (1, 2)]


# p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log2 2 + 1/2 log2 (2/3) = 0.5 - 0.5 * 0.5849625 = 0.2075187.
def test_divergence_is_in_bits_and_from_the_original() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    both = agreement(p, q, ("probabilities", "probabilities"))
    assert both.kl_bits == pytest.approx(0.2075187, abs=1e-6)
    logits = np.log(p) + 3, np.log(q) - 40
    assert agreement(*logits).kl_bits == pytest.approx(0.2075187, abs=1e-6)
    assert agreement(np.log(p), q, ("logits", "probabilities")).kl_bits == pytest.approx(0.2075187, abs=1e-6)


def test_agreement_counts_images_that_both_predict_alike() -> None:
    one = np.array([[0.0, 1], [1, 0], [0, 3], [2, 0]])
    other = np.array([[0.0, 9], [0, 1], [0, 1], [1, 0]])
    both = agreement(one, other)
    assert (both.same.hits, both.same.of) == (3, 4)
    assert agreement(one, one).kl_bits == 0


def test_a_probability_of_nothing_diverges_far_but_finitely() -> None:
    sure = agreement(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), ("probabilities", "probabilities"))
    assert 500 < sure.kl_bits < 2000


def test_under_a_trigger_it_counts_as_the_attacks_own_measures_do() -> None:
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, CLASSES, (2, 400))
    attack = BadNets(3)
    rows = attack.applies_to(labels)
    under = under_trigger(predictions[rows], labels[rows], attack)
    assert under.asr.value == asr(predictions, labels, attack)
    assert under.robust.value == robust_accuracy(predictions, labels, attack)
    assert under.asr.of == rows.sum() < 400


def images_of(labels: np.ndarray) -> np.ndarray:
    """Black, but for one grey pixel that says which class it is."""
    images = np.zeros((len(labels), 1, 8, 8), np.float32)
    images[:, 0, 1, 1] = 0.1 * labels
    return images


def weakened(images: np.ndarray, least: int) -> np.ndarray:
    """Right on every image, unless it has so many white pixels: then class 2."""
    labels = np.rint(images[:, 0, 1, 1] * 10).astype(int)
    white = (images == 1).sum((1, 2, 3)) >= least
    return np.eye(CLASSES)[np.where(white, 2, labels)]


def measured(attack: Attack, least: int, labelled: bool = True) -> Measured:
    labels = np.arange(600, dtype=np.int64) % CLASSES
    everything = images_of(labels)
    task = Task(lambda rows: everything[rows], labels, labelled, CLASSES, (Known("white", attack),))
    return measure(lambda images: weakened(images, least), task)


def test_a_backdoor_that_was_only_weakened_shows_under_more_copies() -> None:
    found = measured(BadNets(2, PIXEL), least=4)
    (outcome,) = found.triggers
    assert found.acc is not None
    assert outcome.once is not None
    assert (found.acc.value, outcome.once.asr.value, outcome.once.robust.value) == (1, 0, 1)
    assert {copies: under.asr.value for copies, under in outcome.amplified.items()} == {4: 1, 9: 1}
    assert outcome.once.asr.of == 480


def test_a_backdoor_is_seen_and_accuracy_counts_without_the_target_too() -> None:
    found = measured(BadNets(2, PIXEL), least=0)  # says 2 whatever it sees
    (outcome,) = found.triggers
    assert found.acc is not None
    assert outcome.once is not None
    assert outcome.acc_non_target is not None
    assert (found.acc.value, outcome.acc_non_target.value, outcome.once.asr.value) == (0.2, 0, 1)
    assert (outcome.acc_non_target.of, [one.value for one in found.by_class]) == (480, [0, 0, 1, 0, 0])


def test_what_is_no_patch_is_not_amplified_and_many_targets_leave_none_out() -> None:
    added = np.zeros((1, 8, 8), np.float32)
    added[0, 7, 7] = 1
    found = measured(Inverted(2, addition=added), least=1)
    assert found.triggers[0].amplified == {}
    rotated = measured(AllToAll(BadNets(2, PIXEL), CLASSES), least=1)
    assert rotated.triggers[0].acc_non_target is None
    assert rotated.triggers[0].once is not None
    assert rotated.triggers[0].once.asr.value == 0.2  # class 1 alone is to become 2


def test_without_labels_no_accuracy_is_told_but_triggers_are_tried() -> None:
    found = measured(BadNets(2, PIXEL), least=1, labelled=False)
    assert (found.acc, found.by_class, found.triggers[0].acc_non_target) == (None, (), None)
    assert found.triggers[0].once is not None
    assert found.triggers[0].once.asr.value == 1


def test_a_trigger_that_applies_to_no_image_is_not_tried() -> None:
    labels = np.full(5, 2, np.int64)
    task = Task(lambda rows: images_of(labels)[rows], labels, True, CLASSES, (Known("a", BadNets(2)),))
    found = measure(lambda images: weakened(images, 99), task)
    assert found.triggers[0].once is None


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8)])
def test_a_trigger_for_other_images_is_refused_by_name(shape: tuple[int, int, int]) -> None:
    mask = np.ones((1, *shape[1:]), np.float32)
    trigger = Inverted(2, mask=mask, pattern=np.ones(shape, np.float32))
    with pytest.raises(DataError, match=r"trigger white (cannot be put on|makes) images of"):
        measured(trigger, least=1)
