"""What is counted of a candidate, and when it is too much: by evidence, not by chance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from guard.control.canary_tally import CanaryLimits, CanaryTally
from guard.control.rate_test import ALPHA, RateTest
from guard.dataplane.trial import Pair, Seen
from guard.metrics_catalogue import CanaryOutcome

LIMITS = CanaryLimits(min_rows=20)
CLEAN = Seen(1, False, 1.5)
OTHER_CLASS = Seen(2, False, 1.25)
SUSPICIOUS = Seen(1, True, 0.25)


def tally(**limits: float) -> CanaryTally:
    return CanaryTally(replace(LIMITS, **limits), certified_frr=0.01)


def trials_to_tell(limit: float, rate: float, most: int = 20_000, seed: int = 0) -> int:
    """Return after how many trials at a rate the limit is exceeded; ``most`` if it never is."""
    test, draws = RateTest(limit), np.random.default_rng(seed).random(most) < rate
    for count, event in enumerate(draws.tolist(), start=1):
        test.add(int(event), 1)
        if test.exceeded:
            return count
    return most


# The test of a rate


def test_the_evidence_is_the_mean_likelihood_ratio() -> None:
    test = RateTest(0.1)
    test.add(3, 9)
    alternatives = 0.1 + 0.9 * np.array([0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.9])
    ratio = np.mean((alternatives / 0.1) ** 3 * ((1 - alternatives) / 0.9) ** 6)
    assert ratio < 1 / ALPHA
    assert not test.exceeded
    test.add(5, 5)
    assert np.mean((alternatives / 0.1) ** 8 * ((1 - alternatives) / 0.9) ** 6) >= 1 / ALPHA
    assert test.exceeded


def test_looking_after_every_trial_raises_no_false_alarms() -> None:
    alarms = sum(trials_to_tell(0.05, 0.05, most=1000, seed=seed) < 1000 for seed in range(40))
    assert alarms <= 1  # 40 · ALPHA = 0.04 are expected at most; a plain test at every look gives many


@pytest.mark.parametrize(("rate", "at_most"), [(1.0, 2), (0.5, 15), (0.1, 200), (0.03, 2500)])
def test_the_worse_it_is_the_sooner_it_is_told(rate: float, at_most: int) -> None:
    assert max(trials_to_tell(0.01, rate, seed=seed) for seed in range(5)) <= at_most


def test_a_limit_of_nothing_and_a_limit_of_all_need_no_evidence() -> None:
    never, at_once = RateTest(1.0), RateTest(0.0)
    never.add(50, 50), at_once.add(0, 50)
    assert (never.exceeded, at_once.exceeded) == (False, False)
    at_once.add(1, 1)
    assert at_once.exceeded


# What a candidate is judged by


def test_a_candidate_that_does_as_the_current_version_does_is_left_alone() -> None:
    counted = tally()
    for _ in range(500):
        counted.asked(), counted.answered(0.01), counted.current_answered(0.01)
        counted.compared([Pair(CLEAN, CLEAN), Pair(SUSPICIOUS, SUSPICIOUS)])
        assert counted.breach() is None


def test_errors_are_told_at_once() -> None:
    counted = tally()
    for _ in range(2):
        counted.asked(), counted.failed()
    breach = counted.breach()
    assert breach is not None
    assert breach.outcome is CanaryOutcome.ERRORS
    assert breach.why == "2 of 2 requests failed, provably above the 1.00% allowed"


def test_rejections_of_what_the_current_version_accepts_are_held_against_its_promise() -> None:
    counted = tally()
    counted.compared([Pair(SUSPICIOUS, CLEAN)] * 19)
    assert counted.breach() is None  # too few rows to judge
    counted.compared([Pair(SUSPICIOUS, CLEAN)])
    breach = counted.breach()
    assert breach is not None
    assert breach.outcome is CanaryOutcome.REJECTIONS
    assert breach.why == (
        "20 of 20 rows that the current version accepts were found suspicious, provably above the 3.00% "
        "allowed"
    )


def test_what_both_reject_and_what_only_the_current_version_rejects_is_held_against_nobody() -> None:
    counted = tally()
    counted.compared([Pair(SUSPICIOUS, SUSPICIOUS), Pair(OTHER_CLASS, SUSPICIOUS)] * 200)
    assert counted.breach() is None
    assert counted.figures()["rejected_by_current"] == 400


def test_other_classes_count_where_both_accept() -> None:
    counted = tally()
    counted.compared([Pair(OTHER_CLASS, CLEAN)] * 10 + [Pair(CLEAN, CLEAN)] * 10)
    breach = counted.breach()
    assert breach is not None
    assert breach.outcome is CanaryOutcome.DISAGREEMENT
    assert (
        "10 of 20 rows that both versions accept got another class, provably above the 10.00%" in breach.why
    )


def slow_candidate(seconds: float, requests: int = 100) -> CanaryTally:
    counted = tally()
    for _ in range(100):
        counted.current_answered(0.01)
    for _ in range(requests):
        counted.answered(seconds)
    return counted


def test_a_candidate_is_slow_against_the_p99_of_the_current_version() -> None:
    breach = slow_candidate(0.031).breach()
    assert breach is not None
    assert breach.outcome is CanaryOutcome.LATENCY
    assert breach.why == (
        "100 of 100 answers took longer than 0.03 s, provably above the 2.00% allowed; that is "
        "max_latency_ratio (3) times the current p99"
    )
    assert slow_candidate(0.03).breach() is None
    assert slow_candidate(0.031, requests=99).breach() is None


def test_without_requests_of_the_current_version_latency_is_not_judged() -> None:
    counted = tally()
    for _ in range(500):
        counted.answered(10.0)
    assert counted.breach() is None


def test_a_few_slow_answers_are_no_reason() -> None:
    counted = slow_candidate(0.01)
    for _ in range(3):
        counted.answered(5.0)
    assert counted.breach() is None


def test_the_figures_say_all_of_it() -> None:
    counted = tally()
    assert not {name for name in counted.figures() if name.endswith("_seconds")}
    for seconds in (0.01, 0.02, 0.03):
        counted.asked(), counted.answered(seconds)
    counted.asked(), counted.failed(), counted.dropped()
    counted.current_answered(0.005)
    counted.compared([Pair(CLEAN, CLEAN), Pair(OTHER_CLASS, CLEAN), Pair(SUSPICIOUS, CLEAN)])
    counted.compared([Pair(CLEAN, SUSPICIOUS)])

    assert counted.figures() == {
        "requests": 4,
        "answered": 3,
        "errors": 1,
        "compared": 2,
        "shadow_dropped": 1,
        "rows": 4,
        "class_disagreements": 1,
        "verdict_disagreements": 2,
        "rejected_by_candidate": 1,
        "rejected_by_current": 1,
        "accepted_by_current": 3,
        "accepted_by_current_only": 1,
        "accepted_by_both": 2,
        "accepted_by_both_class_differs": 1,
        "max_rejection_rate": 0.03,
        "mean_entropy_difference_bits": pytest.approx((0 - 0.25 - 1.25 + 1.25) / 4),
        "slow_answers": 0,
        "candidate_p50_seconds": 0.02,
        "candidate_p99_seconds": 0.03,
        "current_p50_seconds": 0.005,
        "current_p99_seconds": 0.005,
    }


def test_latencies_are_those_of_the_last_thousand() -> None:
    counted = tally()
    for seconds in [9.0] * 500 + [0.01] * 1000:
        counted.answered(seconds)
    assert counted.figures()["candidate_p99_seconds"] == 0.01
    assert math.isclose(counted.figures()["answered"], 1500)
