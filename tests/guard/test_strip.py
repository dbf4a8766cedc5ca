"""STRIP and its exact curtailment: stopping early changes the cost, never the verdict."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.detection.base import Decision, Evidence
from guard.detection.p_values import p_value
from guard.detection.plan import CheckPlan, default_rounds
from guard.detection.strip import Strip, mean_entropies, passes_needed

some_rounds = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)
# Entropies from a coarse grid collide with boundaries and with each other; the others do not.
some_bits = st.one_of(
    st.floats(0.0, 10.0, width=32),
    st.integers(0, 8).map(lambda eighths: eighths / 8),
    st.sampled_from([0.0, -0.0, 1e-45, 0.1, 3.321928, 1e30]),
)


class Case(NamedTuple):
    """A detector, in parts, and the entropies of three inputs."""

    rounds: tuple[int, ...]
    boundary_bits: float
    entropies: np.ndarray

    @property
    def strip(self) -> Strip:
        # Not made while hypothesis draws: the type checks on it use `random`.
        return Strip(CheckPlan(self.rounds), self.boundary_bits)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any rounds, entropies and boundary; often the boundary is a mean that an input attains."""
    rounds = draw(some_rounds)
    entropies = draw(hnp.arrays(np.float32, (3, sum(rounds)), elements=some_bits.map(np.float32)))
    attained = np.cumsum(entropies, axis=1, dtype=np.float64)[:, -1] / sum(rounds)
    below, above = np.nextafter(attained, -np.inf), np.nextafter(attained, np.inf)
    boundary = draw(st.one_of(st.sampled_from([*attained, *below, *above]), st.floats(-1.0, 12.0)))
    return Case(rounds, float(boundary), entropies)


def curtailed(strip: Strip, entropies: np.ndarray) -> tuple[Decision, Evidence]:
    """Check one input round by round, as the scheduler does."""
    evidence, decision = Evidence(), None
    while decision is None:
        chosen = strip.plan.next_round(evidence.passes)
        evidence = strip.update(evidence, entropies[chosen.start : chosen.stop])
        decision = strip.decide(evidence)
    return decision, evidence


@given(cases())
def test_the_verdict_of_the_curtailed_check_is_that_of_all_overlays(case: Case) -> None:
    strip, entropies = case.strip, case.entropies
    for row, mean in zip(entropies, mean_entropies(entropies), strict=True):
        expected = Decision.SUSPICIOUS if mean < strip.boundary_bits else Decision.CLEAN
        assert curtailed(strip, row)[0] is expected


@given(cases(), some_rounds)
def test_the_verdict_does_not_depend_on_the_rounds(case: Case, other_rounds: tuple[int, ...]) -> None:
    strip, entropies = case.strip, case.entropies
    n_overlays = strip.plan.n_overlays
    assume(sum(other_rounds) <= n_overlays)
    rest = (n_overlays - sum(other_rounds),) if sum(other_rounds) < n_overlays else ()
    other = Strip(CheckPlan((*other_rounds, *rest)), strip.boundary_bits)
    for row in entropies:
        assert curtailed(other, row)[0] is curtailed(strip, row)[0]


@settings(max_examples=50)
@given(cases())
def test_passes_needed_are_what_the_curtailed_check_spends(case: Case) -> None:
    strip, entropies = case.strip, case.entropies
    spent = [curtailed(strip, row)[1].passes for row in entropies]
    assert passes_needed(entropies, strip).tolist() == spent


@settings(max_examples=50)
@given(cases())
def test_mean_entropies_are_the_sums_of_the_check_bit_for_bit(case: Case) -> None:
    strip, entropies = case.strip, case.entropies
    for row, mean in zip(entropies, mean_entropies(entropies), strict=True):
        evidence = Evidence()
        for size in strip.plan.rounds:
            evidence = strip.update(evidence, row[evidence.passes : evidence.passes + size])
        assert evidence.entropy_sum / strip.plan.n_overlays == mean
        assert strip.score(evidence) == -mean


@settings(max_examples=50)
@given(cases(), st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20))
def test_a_curtailed_check_bounds_score_and_p_value_from_the_cautious_side(
    case: Case, clean: list[float]
) -> None:
    """What was not looked at counts as entropy 0, so it can only make an input more suspicious."""
    strip, entropies = case.strip, case.entropies
    for row, mean in zip(entropies, mean_entropies(entropies), strict=True):
        _, evidence = curtailed(strip, row)
        seen = evidence.entropy_sum / strip.plan.n_overlays
        assert strip.score(evidence) >= -mean
        assert p_value(seen, np.sort(clean)) <= p_value(float(mean), np.sort(clean))


@settings(max_examples=50)
@given(cases())
def test_the_score_never_rises_while_a_check_goes_on(case: Case) -> None:
    strip, entropies = case.strip, case.entropies
    evidence, scores = Evidence(), []
    for size in strip.plan.rounds:
        evidence = strip.update(evidence, entropies[0, evidence.passes : evidence.passes + size])
        scores.append(strip.score(evidence))
    assert all(later <= earlier for earlier, later in pairwise(scores))


def test_a_check_stops_in_the_first_round_that_reaches_the_boundary() -> None:
    strip = Strip(CheckPlan((2, 2, 4)), boundary_bits=0.5)  # 4 bits of 8 overlays
    certain, quick, late = np.zeros(8), np.full(8, 2.0), np.array([0.0, 0, 0, 0, 0, 0, 2, 2])
    assert curtailed(strip, quick) == (Decision.CLEAN, Evidence(4.0, 2))
    assert curtailed(strip, late) == (Decision.CLEAN, Evidence(4.0, 8))
    assert curtailed(strip, certain) == (Decision.SUSPICIOUS, Evidence(0.0, 8))
    assert passes_needed(np.stack([quick, late, certain]), strip).tolist() == [2, 8, 8]


def test_a_mean_equal_to_the_boundary_is_clean_and_the_next_number_below_is_suspicious() -> None:
    entropies = np.full((1, 10), 0.1, np.float64)
    mean = float(mean_entropies(entropies)[0])
    assert mean != 0.1  # ten rounded sums; the boundary is compared with what they give
    at, above = (Strip(CheckPlan((4, 6)), tau) for tau in (mean, float(np.nextafter(mean, 1.0))))
    assert curtailed(at, entropies[0])[0] is Decision.CLEAN
    assert curtailed(above, entropies[0])[0] is Decision.SUSPICIOUS


def test_an_undecided_input_goes_on_to_the_next_round() -> None:
    strip = Strip(CheckPlan((4, 4)), boundary_bits=1.0)
    assert strip.decide(Evidence(7.9, 4)) is None
    assert strip.decide(Evidence(8.0, 4)) is Decision.CLEAN
    assert strip.decide(Evidence(7.9, 8)) is Decision.SUSPICIOUS


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 3, 7])
def test_an_entropy_that_is_not_finite_fails_the_check_in_its_round(bad: float, position: int) -> None:
    strip = Strip(CheckPlan((2, 2, 4)), boundary_bits=100.0)
    entropies = np.ones(8, np.float32)
    entropies[position] = bad
    decision, evidence = curtailed(strip, entropies)
    assert decision is Decision.FAILED
    assert evidence.passes == {0: 2, 3: 4, 7: 8}[position]
    assert passes_needed(entropies[None], strip).tolist() == [evidence.passes]


def test_a_failed_check_is_never_called_clean_whatever_the_boundary() -> None:
    strip = Strip(CheckPlan((1,)), boundary_bits=-1.0)
    assert strip.decide(Evidence(float("nan"), 1)) is Decision.FAILED
    assert strip.decide(Evidence(float("inf"), 1)) is Decision.FAILED


def test_mean_entropies_keep_nan_to_its_row() -> None:
    entropies = np.array([[1.0, 2.0], [np.nan, 2.0]])
    np.testing.assert_array_equal(mean_entropies(entropies), [1.5, np.nan])


def test_rounding_below_zero_counts_as_zero() -> None:
    """The check graph may give -1e-8 for a certain prediction; the sums must not shrink."""
    strip = Strip(CheckPlan((2,)), boundary_bits=0.0)
    assert strip.update(Evidence(1.0, 0), np.array([-1e-8, -0.0])) == Evidence(1.0, 2)
    assert mean_entropies(np.array([[-1e-8, 1.0]])).tolist() == [0.5]


def test_sums_are_float64_whatever_the_entropies_are() -> None:
    """In float32, 2^24 + 1 = 2^24."""
    strip = Strip(CheckPlan((2,)), boundary_bits=1.0)
    entropies = np.array([2.0**24, 1.0], np.float32)
    assert strip.update(Evidence(), entropies).entropy_sum == 2**24 + 1
    assert mean_entropies(entropies[None]).tolist() == [(2**24 + 1) / 2]


def test_most_clean_inputs_cost_the_first_round_only() -> None:
    """Entropies near 2 bits against a boundary of 0.2: 4 · 2 ≥ 32 · 0.2."""
    strip = Strip(CheckPlan(default_rounds(32)), boundary_bits=0.2)
    clean = np.random.default_rng(0).uniform(1.7, 2.3, (50, 32)).astype(np.float32)
    assert passes_needed(clean, strip).tolist() == [4.0] * 50
