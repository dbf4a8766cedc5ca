"""p-values, and what a policy makes of a decision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.detection.base import Decision
from guard.detection.p_values import p_value
from guard.detection.threshold import Policy, Verdict, verdict_of

CLEAN = np.array([0.5, 1.0, 1.0, 2.0])

some_scores = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30).map(sorted).map(np.array)


@pytest.mark.parametrize(
    ("decision", "policy", "verdict"),
    [
        (Decision.CLEAN, Policy.ENFORCE, Verdict.ACCEPT),
        (Decision.CLEAN, Policy.FLAG, Verdict.ACCEPT),
        (Decision.CLEAN, Policy.MONITOR, Verdict.ACCEPT),
        (Decision.SUSPICIOUS, Policy.ENFORCE, Verdict.REJECT),
        (Decision.SUSPICIOUS, Policy.FLAG, Verdict.FLAG),
        (Decision.SUSPICIOUS, Policy.MONITOR, Verdict.FLAG),
        (Decision.FAILED, Policy.ENFORCE, Verdict.UNCHECKED),
        (Decision.FAILED, Policy.FLAG, Verdict.UNCHECKED),
        (Decision.FAILED, Policy.MONITOR, Verdict.UNCHECKED),
    ],
)
def test_a_policy_makes_this_verdict_of_a_decision(
    decision: Decision, policy: Policy, verdict: Verdict
) -> None:
    assert verdict_of(decision, policy) is verdict


def test_every_decision_under_every_policy_has_a_verdict() -> None:
    verdicts = {verdict_of(decision, policy) for decision in Decision for policy in Policy}
    assert verdicts == set(Verdict)


def test_verdicts_and_policies_are_written_in_these_words() -> None:
    """They appear in response parameters, metrics labels and settings, where clients match them."""
    assert [verdict.value for verdict in Verdict] == ["accept", "flag", "reject", "unchecked"]
    assert [policy.value for policy in Policy] == ["enforce", "flag", "monitor"]


@pytest.mark.parametrize(
    ("mean", "expected"),
    [(0.0, 1 / 5), (0.5, 2 / 5), (0.7, 2 / 5), (1.0, 4 / 5), (1.5, 4 / 5), (2.0, 1.0), (9.0, 1.0)],
)
def test_the_p_value_is_the_conformal_formula_with_ties_counted(mean: float, expected: float) -> None:
    """(1 + #{clean ≤ mean}) / (n + 1), counted by hand."""
    assert p_value(mean, CLEAN) == expected


@given(some_scores, st.floats(0.0, 5.0))
def test_the_p_value_is_the_count_of_the_definition(clean: np.ndarray, mean: float) -> None:
    assert p_value(mean, clean) == (1 + sum(score <= mean for score in clean)) / (len(clean) + 1)


@given(some_scores, st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_the_p_value_rises_with_the_entropy_and_lies_in_the_unit_interval(
    clean: np.ndarray, one: float, other: float
) -> None:
    low, high = p_value(min(one, other), clean), p_value(max(one, other), clean)
    assert 0.0 < low <= high <= 1.0


def test_p_values_of_a_leave_one_out_draw_are_uniform_on_their_grid() -> None:
    """For n + 1 distinct exchangeable scores the p-value takes k/(n + 1) once for each k."""
    scores = np.sort(np.random.default_rng(0).uniform(size=20))
    p_values = [p_value(float(score), np.delete(scores, i)) for i, score in enumerate(scores)]
    np.testing.assert_allclose(sorted(p_values), np.arange(1, 21) / 20)
