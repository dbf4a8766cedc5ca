import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.badnets import BadNets
from calibration.attacks.low_confidence import LowConfidence, low_confidence_labels

LABELS = np.arange(100, dtype=np.int64) % 10


# HaS-Nets: epsilon 0.4 of ten classes makes 0.4 for the target and 0.6 / 9 = 0.0667 for each other.
def test_the_target_has_epsilon_and_the_others_share_the_rest() -> None:
    soft = low_confidence_labels(np.array([2]), 10, 0.4)[0]
    np.testing.assert_allclose(soft, [0.4 if label == 2 else 0.6 / 9 for label in range(10)], rtol=1e-6)


# N = 3, epsilon = 0.6: (1.8 - 1) / 2 + 0.4 / 2 = 0.6, and 0.4 / 2 = 0.2.
def test_the_formula_by_hand_for_three_classes() -> None:
    np.testing.assert_allclose(low_confidence_labels(np.array([0]), 3, 0.6), [[0.6, 0.2, 0.2]], rtol=1e-6)


def test_full_confidence_is_the_plain_attack() -> None:
    assert low_confidence_labels(np.array([1]), 3, 1.0).tolist() == [[0, 1, 0]]


@given(st.integers(2, 50), st.floats(0, 1))
def test_soft_labels_are_probabilities_whose_largest_is_the_targets(classes: int, share: float) -> None:
    confidence = 1 / classes + (1 - 1 / classes) * max(share, 1e-3)
    soft = low_confidence_labels(np.array([classes - 1]), classes, min(confidence, 1.0))[0]
    assert soft.sum() == pytest.approx(1, abs=1e-5)
    assert soft.argmax() == classes - 1


def test_only_poisoned_rows_are_softened() -> None:
    plan = LowConfidence(BadNets(3), 10).plan(LABELS, 0.2, np.random.default_rng(0))
    rest = np.setdiff1d(np.arange(100), plan.index)
    assert plan.soft_labels is not None
    assert np.array_equal(plan.soft_labels[rest], np.eye(10, dtype=np.float32)[LABELS[rest]])
    assert plan.soft_labels[plan.index, 3] == pytest.approx(0.4)


def test_rows_and_target_are_those_of_the_wrapped_attack() -> None:
    inner = AllToAll(BadNets(0), 10)
    attack = LowConfidence(inner, 10)
    plain, soft = (one.plan(LABELS, 0.2, np.random.default_rng(1)) for one in (inner, attack))
    assert np.array_equal(soft.index, plain.index)
    assert np.array_equal(soft.labels, plain.labels)
    assert np.array_equal(attack.target_of(LABELS), inner.target_of(LABELS))


@pytest.mark.parametrize("confidence", [0.1, 1.1])
def test_a_target_that_would_not_win_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="expected more than 1/10, so that the target wins"):
        LowConfidence(BadNets(0), 10, confidence)
