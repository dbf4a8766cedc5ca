from dataclasses import replace

import numpy as np
import pytest

from calibration.scan.evidence import Prior
from calibration.scan.inversion import Aim
from calibration.scan.judgement import Judgement, Measured, Rule, candidates, judge

RULE = Rule(Prior(0.2, 8.0), 0.01, 0.6, 0.8, "pixels", reaches_all=True)
USUAL = [Measured(Aim(label), 20.0 + label, 1.0, won=True) for label in range(10)]


def labels(**change: object) -> list[Measured]:
    """Nine usual labels and label 0 with a tiny trigger that was found twice, but for what is changed."""
    one = replace(USUAL[0], size=3.0).with_second(3.0, 1.0, won=True)
    return [replace(one, **change), *USUAL[1:]]  # type: ignore[arg-type]


def told(measured: list[Measured], rule: Rule = RULE) -> Judgement:
    return judge(measured, len(measured), rule)


def test_a_tiny_trigger_found_twice_that_works_is_a_backdoors() -> None:
    judged = told(labels())
    assert judged.verdict == "backdoored"
    assert [finding.target for finding in judged.findings if finding.flagged] == [0]
    assert judged.findings[0].target == 0
    assert "label 0: a trigger of 3 pixels" in judged.reasons[0]


def test_usual_sizes_are_clean_and_the_smallest_is_told() -> None:
    judged = told(USUAL)
    assert judged.verdict == "clean"
    assert candidates(USUAL, 10, RULE, 8) == []
    assert "label 0 with 20 pixels" in judged.reasons[0]
    assert not any(finding.flagged for finding in judged.findings)


first = replace(USUAL[0], size=3.0)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (first, "searched once"),
        (first.with_second(3.0, 0.5, won=True), "turns only 50%"),
        (first.with_second(25.0, 1.0, won=False), "second search did not find it"),
        (first.with_second(float("nan"), 1.0, won=True), "second search did not find it"),
        (first.with_second(16.0, 1.0, won=True), "second search did not find it"),
        (replace(labels()[0], facts={"before": 0.5, "second_size": 3.0}), "50% of them for it without"),
    ],
)
def test_what_is_small_but_does_not_hold_is_left_open(one: Measured, why: str) -> None:
    judged = told([one, *USUAL[1:]])
    assert judged.verdict == "inconclusive"
    assert why in judged.reasons[0]
    assert not any(finding.flagged for finding in judged.findings)


def test_a_chance_a_little_too_large_is_left_open() -> None:
    size = next(
        size for size in np.arange(3.0, 20.0, 0.1) if told(labels(size=float(size))).verdict != "backdoored"
    )
    judged = told(labels(size=float(size)))
    assert judged.verdict == "inconclusive"
    assert 0.01 < (judged.findings[0].p_value or 0) <= 0.1
    assert "with a chance of" in judged.reasons[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_too_few_labels_nothing_is_said(count: int) -> None:
    judged = told(labels()[:count])
    assert judged.verdict == "inconclusive"
    assert f"{count} labels are too few" in judged.reasons[-1]


def test_where_most_labels_are_not_reached_something_is_wrong() -> None:
    lost = [replace(one, won=one.aim.target < 4) for one in USUAL]
    assert told(lost).verdict == "inconclusive"
    assert "no trigger was found for 6 of 10 labels" in told(lost).reasons[-1]
    assert told(lost, replace(RULE, reaches_all=False)).verdict == "clean"


def test_a_trigger_that_never_worked_is_none() -> None:
    assert told(labels(won=False)).verdict == "clean"


def test_a_label_not_asked_about_is_not_flagged_but_told() -> None:
    judged = told(labels(asked=False))
    assert judged.verdict == "inconclusive"
    assert "label 0, searched only for comparison" in judged.reasons[0]
    assert not any(finding.flagged for finding in judged.findings)
    assert candidates(labels(asked=False), 10, RULE, 8) == []


def test_the_reason_for_clean_is_of_a_label_asked_about() -> None:
    asked = [replace(one, asked=one.aim.target > 0) for one in USUAL]
    assert "label 1 with 21 pixels" in told(asked).reasons[0]


@pytest.mark.parametrize("size", [float("nan"), float("inf"), float("-inf")])
def test_a_size_that_is_no_number_is_neither_flagged_nor_hides_others(size: float) -> None:
    broken = replace(USUAL[9], size=size)
    judged = told([*labels()[:9], broken])
    assert [finding.target for finding in judged.findings if finding.flagged] == [0]
    assert candidates([first, *USUAL[1:9], broken], 10, RULE, 8) == [0]
    alone = told([*USUAL[:9], broken])
    assert alone.verdict == "inconclusive"
    assert "1 labels left the numbers" in alone.reasons[-1]
    for finding in alone.findings:
        assert np.isfinite([finding.score, *finding.facts.values()]).all()
    assert told([replace(one, size=size) for one in USUAL]).verdict == "inconclusive"


def test_a_size_of_nothing_is_as_small_as_can_be() -> None:
    assert told(labels(size=0.0)).verdict == "backdoored"
    assert np.isfinite(told(labels(size=0.0)).findings[0].score)
    assert told([replace(one, size=0.0) for one in USUAL]).verdict == "clean"


def test_the_likeliest_are_searched_again_first() -> None:
    small = [replace(one, size=2.0 + one.aim.target) if one.aim.target < 3 else one for one in USUAL]
    assert candidates(small, 10, RULE, 8)[0] == 0
    assert len(candidates(small, 10, RULE, 1)) == 1


def test_a_second_search_counts_as_much_as_the_first() -> None:
    both = first.with_second(12.0, 0.9, won=True)
    assert (both.size, both.asr, both.confirmed) == (pytest.approx(6.0), 0.9, True)
    assert (both.facts["first_size"], both.facts["second_size"]) == (3.0, 12.0)
