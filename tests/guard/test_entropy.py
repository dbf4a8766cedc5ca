"""Entropy in bits. Golden numbers come from the formula in float64, or from exact powers of two."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.detection.entropy import entropy_of_logits, entropy_of_probabilities, softmax

# Rounding of k float32 terms, each below 0.54 bits, and of their sum.
FLOAT32_TOLERANCE = 4e-6

some_logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(2, 50)),
    elements=st.floats(-1e4, 1e4, width=32),
)


def reference_probabilities(logits: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def reference_entropy(probabilities: np.ndarray) -> list[float]:
    """The definition row by row, with 0 log 0 = 0, in float64."""
    return [-sum(p * math.log2(p) for p in row if p > 0) for row in probabilities.astype(np.float64)]


@given(some_logits)
def test_entropy_of_logits_is_the_formula_in_float64(logits: np.ndarray) -> None:
    expected = reference_entropy(reference_probabilities(logits))
    np.testing.assert_allclose(entropy_of_logits(logits), expected, atol=FLOAT32_TOLERANCE)


@given(some_logits)
def test_entropy_lies_between_0_and_log2_of_the_number_of_classes(logits: np.ndarray) -> None:
    entropy = entropy_of_logits(logits)
    assert (entropy >= 0.0).all()
    assert (entropy <= math.log2(logits.shape[-1]) + FLOAT32_TOLERANCE).all()


@given(some_logits, st.randoms(use_true_random=False))
def test_entropy_does_not_depend_on_the_order_of_the_classes(logits: np.ndarray, random: Random) -> None:
    order = list(range(logits.shape[-1]))
    random.shuffle(order)
    np.testing.assert_allclose(
        entropy_of_logits(logits[:, order]), entropy_of_logits(logits), atol=FLOAT32_TOLERANCE
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 4, 64, 1024])
def test_a_uniform_prediction_has_log2_k_bits(classes: int, dtype: type) -> None:
    uniform = np.full((3, classes), 1.0 / classes, dtype)  # powers of two: exact in every dtype
    np.testing.assert_allclose(entropy_of_probabilities(uniform), math.log2(classes), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_certain_prediction_has_0_bits(dtype: type) -> None:
    entropy = entropy_of_probabilities(np.eye(7, dtype=dtype))
    assert entropy.tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("row", "bits"),
    [
        ([0.5, 0.5], 1.0),
        ([0.5, 0.25, 0.25], 1.5),  # 1/2·1 + 2·1/4·2
        ([0.25, 0.25, 0.25, 0.125, 0.125], 2.25),  # 3·1/4·2 + 2·1/8·3
        ([0.9, 0.1], 0.4689955935892812),  # -0.9 log2 0.9 - 0.1 log2 0.1, float64
    ],
)
def test_entropy_equals_values_worked_out_by_hand(row: list[float], bits: float) -> None:
    assert entropy_of_probabilities(np.array([row], np.float64))[0] == pytest.approx(bits, abs=1e-12)
    assert entropy_of_probabilities(np.array([row], np.float32))[0] == pytest.approx(bits, abs=1e-6)


def test_a_constant_certain_prediction_has_mean_entropy_0() -> None:
    """The entropy is taken over the classes of one blend, not over the blends of one class.

    A triggered input gives the same certain row for all its N blends. Summed down a column
    (as ART's STRIP does), N equal values look like the most uncertain prediction there is.
    """
    n_overlays, classes = 16, 10
    triggered = np.zeros((n_overlays, classes), np.float32)
    triggered[:, 3] = 1.0
    assert entropy_of_probabilities(triggered).mean() == 0.0

    over_the_wrong_axis = triggered[:, 3] / triggered[:, 3].sum()
    assert entropy_of_probabilities(over_the_wrong_axis) == pytest.approx(math.log2(n_overlays))


def test_a_prediction_that_changes_with_the_overlay_counts_as_certain_all_the_same() -> None:
    """What is measured is how sure each prediction is, not how much the predictions differ."""
    each_blend_another_class = np.eye(10, dtype=np.float32)
    assert entropy_of_probabilities(each_blend_another_class).mean() == 0.0


def test_entropy_keeps_every_axis_but_the_last() -> None:
    probabilities = np.full((2, 3, 5, 4), 0.25, np.float32)
    assert entropy_of_probabilities(probabilities).shape == (2, 3, 5)
    assert entropy_of_probabilities(probabilities[0, 0, 0]).shape == ()


def test_entropy_of_a_row_with_nan_is_nan_and_leaves_its_neighbours_alone() -> None:
    probabilities = np.array([[0.5, 0.5], [np.nan, 0.5], [1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(entropy_of_probabilities(probabilities), [1.0, np.nan, 0.0])


def test_rounding_above_certainty_never_gives_a_negative_entropy() -> None:
    slightly_over = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0.0]], np.float32)
    assert entropy_of_probabilities(slightly_over).tolist() == [0.0]


@pytest.mark.parametrize("height", [1e4, -1e4])
def test_softmax_is_stable_for_very_large_logits(height: float) -> None:
    logits = np.array([[height, height, height, height]], np.float32)
    assert softmax(logits).tolist() == [[0.25] * 4]
    assert entropy_of_logits(logits).tolist() == [2.0]


def test_softmax_is_stable_for_logits_that_are_very_far_apart() -> None:
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert softmax(logits).tolist() == [[1.0, 0.0, 0.0]]
    assert entropy_of_logits(logits).tolist() == [0.0]


def test_a_class_that_is_ruled_out_by_minus_infinity_adds_nothing() -> None:
    logits = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert softmax(logits).tolist() == [[0.5, 0.0, 0.5]]
    assert entropy_of_logits(logits).tolist() == [1.0]


@given(some_logits)
def test_softmax_is_the_formula_in_float64_and_keeps_the_dtype(logits: np.ndarray) -> None:
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, reference_probabilities(logits), rtol=2e-5, atol=1e-30)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)


@given(some_logits, st.floats(-1e3, 1e3))
def test_softmax_does_not_change_when_all_logits_move_together(logits: np.ndarray, shift: float) -> None:
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(softmax(wide + shift), softmax(wide), rtol=1e-9, atol=1e-30)
