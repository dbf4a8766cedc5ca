"""What the gates say of numbers: at the limit, beyond it, and where nothing was measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from calibration.errors import OptionError
from calibration.heal.gates import GATES, Gates, Measure, judge


@pytest.mark.parametrize("gate", GATES)
def test_a_number_at_the_limit_passes_and_one_beyond_it_fails(gate: str) -> None:
    limits = Gates()
    limit = getattr(limits, gate)
    beyond = limit + 0.001 if gate.startswith("max_") else limit - 0.001
    others = [Measure("max_inverted_asr", 0.0)] if gate != "max_inverted_asr" else []
    assert judge(limits, [Measure(gate, limit), *others]).passed
    (failure,) = judge(limits, [Measure(gate, beyond), *others]).failures
    assert failure.startswith(f"gate {gate}: ")
    assert f"{limit:g}" in failure


def test_no_number_never_passes() -> None:
    for gate in ("max_inverted_asr", "min_agreement"):
        judged = judge(Gates(), [Measure("max_amplified_asr", 0.0), Measure(gate, math.nan)])
        assert [one.verdict for one in judged.results if one.name == gate] == ["failed"]
        assert not judged.passed


def test_what_was_not_measured_is_said_and_fails_where_it_is_required() -> None:
    measures = [
        Measure("max_anomaly_index", 1.0),
        Measure("max_suspects_kept", note="no suspects were given"),
    ]
    judged = judge(Gates(), measures)
    assert judged.passed
    unmeasured = [one.name for one in judged.results if one.verdict == "not measured"]
    assert len(unmeasured) == len(GATES) - 1
    assert "max_suspects_kept" in unmeasured
    required = judge(Gates(), measures, ["max_suspects_kept", "max_anomaly_index"])
    assert required.failures == ("gate max_suspects_kept is required, and could not be measured",)


def test_accuracy_alone_publishes_nothing() -> None:
    judged = judge(Gates(), [Measure("max_accuracy_drop", 0.0), Measure("min_agreement", 1.0)])
    assert not judged.passed
    assert "nothing could be measured that would show the backdoor" in judged.failures[0]


def test_a_trigger_that_never_worked_shows_nothing_of_a_repair() -> None:
    for gate in ("max_inverted_asr", "max_amplified_asr", "max_distribution_asr", "max_suspects_kept"):
        for before, passes in ((0.05, False), (0.9, True), (None, True)):
            judged = judge(Gates(), [Measure(gate, 0.0, before=before), Measure("min_agreement", 1.0)])
            assert (judged.passed, [one.verdict for one in judged.results if one.name == gate]) == (
                passes,
                ["passed"],
            )


def test_a_number_that_says_nothing_within_its_limit_still_fails_beyond_it() -> None:
    unsure = Measure("min_rescan_p_value", 1.0, sure=False)
    assert {one.verdict for one in judge(Gates(), [unsure]).results} == {"not measured"}
    assert not judge(Gates(), [unsure]).passed
    assert judge(Gates(), [unsure, Measure("max_suspects_kept", 0.0)]).passed
    beyond = judge(Gates(), [replace(unsure, value=0.001), Measure("max_suspects_kept", 0.0)])
    assert beyond.failures == ("gate min_rescan_p_value: 0.001, expected at least 0.01",)


def test_the_better_of_two_is_the_one_that_leaves_and_costs_least() -> None:
    cheap, thorough, dear = (
        judge(Gates(), [Measure("max_inverted_asr", asr), Measure("max_accuracy_drop", drop)]).harm
        for asr, drop in ((0.09, 0.01), (0.01, 0.02), (0.01, 0.049))
    )
    assert thorough < dear < cheap


@pytest.mark.parametrize(
    ("limit", "value"),
    [("max_accuracy_drop", -0.1), ("max_inverted_asr", 1.1), ("max_anomaly_index", math.nan)],
)
def test_a_limit_out_of_its_range_is_refused_by_name(limit: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"gate {limit} = .*: expected"):
        Gates(**{limit: value})
