"""What is expected of clean inputs, and how far others depart from it, against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.detection.entropy import entropy_of_probabilities
from guard.detection.responses import EPSILON, SHRINKAGE, Responses, fit_responses

TWO = np.array([[[0.5, 0.5]], [[1.0, 0.0]]], np.float32)
"""Two classes under one overlay: inputs of class 0 are answered either way, those of class 1 as class 0."""


def test_a_departure_is_half_the_squared_distance_of_the_roots() -> None:
    """Of (1, 0) from (1/2, 1/2): ½ ((1 - √½)² + ½) = 1 - √½; from (1, 0) nothing; of (0, 1) from it, 1."""
    answers = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    departures = Responses(TWO).departures(np.array([0, 1, 1]), np.zeros(3, np.int64), answers)
    np.testing.assert_allclose(departures, [1 - math.sqrt(0.5), 0.0, 1.0], atol=1e-7)


def test_a_surprise_is_the_cross_entropy_with_what_is_expected_in_bits() -> None:
    """(1/4, 3/4) against (1/2, 1/2) is one bit, whatever the answer; what is never expected has a bound."""
    answers = np.array([[0.25, 0.75], [0.0, 1.0]], np.float32)
    surprises = Responses(TWO).surprises(np.array([0, 1]), np.zeros(2, np.int64), answers)
    np.testing.assert_allclose(surprises, [1.0, -math.log2(EPSILON / 2)], rtol=1e-6)


def test_expected_is_the_mean_of_a_class_drawn_to_the_mean_of_all() -> None:
    """20 inputs of class 0 say (1, 0), 5 of class 1 say (0, 1): all together (.8, .2)."""
    predicted = np.array([0] * 20 + [1] * 5)
    answers = np.eye(2, dtype=np.float32)[predicted][:, None]
    expected = fit_responses(predicted, answers).expected[:, 0]
    assert SHRINKAGE == 20
    np.testing.assert_allclose(expected, [[36 / 40, 4 / 40], [16 / 25, 9 / 25]], rtol=1e-6)


def test_of_a_class_that_no_input_is_given_the_mean_of_all_is_expected() -> None:
    answers = np.array([[[0.5, 0.25, 0.25]], [[0.7, 0.1, 0.2]]], np.float32)
    expected = fit_responses(np.array([0, 0]), answers).expected
    np.testing.assert_allclose(expected[2], answers.mean(0), rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 5))
@settings(max_examples=50)
def test_both_are_means_of_what_is_never_negative_and_bounded(seed: int, classes: int, overlays: int) -> None:
    random = np.random.default_rng(seed)
    answers = random.dirichlet(np.full(classes, 0.1), (9, overlays)).astype(np.float32)
    predicted = random.integers(0, classes, 9)
    responses = fit_responses(predicted, answers)
    np.testing.assert_allclose(responses.expected.sum(axis=2), 1.0, rtol=1e-5)
    each = np.repeat(predicted, overlays), np.tile(np.arange(overlays), 9), answers.reshape(-1, classes)
    departures, surprises = responses.departures(*each), responses.surprises(*each)
    assert ((departures >= 0) & (departures <= 1)).all()
    assert ((surprises >= 0) & (surprises <= -math.log2(EPSILON / classes) + 1e-6)).all()
    slack = 2 * EPSILON + 1e-5  # what is expected is drawn a little to the uniform
    assert (surprises >= entropy_of_probabilities(each[2]) - slack).all()  # Gibbs


@pytest.mark.parametrize("predicted", [[], [3], [-1]])
def test_what_cannot_be_fitted_is_refused(predicted: list[int]) -> None:
    answers = np.full((len(predicted), 2, 3), 1 / 3, np.float32)
    with pytest.raises(ValueError, match=r"expected"):
        fit_responses(np.array(predicted, np.int64), answers)
