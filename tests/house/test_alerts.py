"""The alerts parse, name only metrics that exist, and each is seen firing and staying quiet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.promql import promtool, require_known, selectors

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
ALERTS = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
CASES = (FOLDER / "alerts_test.yml").read_text(encoding="utf-8")
RUNBOOK = (FOLDER / "RUNBOOK.md").read_text(encoding="utf-8")

NAMES = re.findall(r"^ +- alert: (\w+)$", ALERTS, re.MULTILINE)


def cases() -> Iterator[tuple[str, bool]]:
    """Yield the alert of each case and whether it is expected to fire."""
    for chunk in CASES.split("alertname: ")[1:]:
        name = chunk.split("\n", 1)[0]
        quiet = "exp_alerts: []" in chunk
        assert quiet != ("exp_labels:" in chunk), f"a case of {name} says neither or both"
        yield name, not quiet


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "alerts.yml", folder=FOLDER)


def test_promtool_accepts_the_example_configuration() -> None:
    promtool("check", "config", "prometheus.yml", folder=FOLDER)


def test_every_case_of_the_alerts_holds() -> None:
    promtool("test", "rules", "alerts_test.yml", folder=FOLDER)


def test_a_missing_promtool_fails_in_ci_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="promtool is missing"):
        promtool("--version", folder=FOLDER)
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception):
        promtool("--version", folder=FOLDER)


def test_the_alerts_are_these() -> None:
    assert sorted(NAMES) == [
        "GuardAnsweringUnchecked",
        "GuardAttack",
        "GuardCanaryRolledBack",
        "GuardCheckFailing",
        "GuardDown",
        "GuardDrift",
        "GuardNoTraffic",
        "GuardNotReady",
        "GuardQueueFull",
        "GuardRecordsLost",
        "GuardRejectedShareHigh",
        "GuardRejectionBurst",
        "GuardSecondOpinionsDisagree",
        "GuardUpstreamNotReady",
        "GuardVersionFailed",
        "GuardWorkerRestarting",
    ]


@pytest.mark.parametrize("file", ["alerts.yml", "alerts_test.yml", "prometheus.yml", "RUNBOOK.md"])
def test_only_metrics_of_the_catalogue_are_named(file: str) -> None:
    require_known((FOLDER / file).read_text(encoding="utf-8"), file)


def test_the_alerts_use_the_metrics_they_are_about() -> None:
    assert {name for name, _ in selectors(ALERTS)} == {
        "guard_audit_failing",
        "guard_audit_records_total",
        "guard_boundary_bits",
        "guard_canaries_ended_total",
        "guard_candidate_failures_total",
        "guard_certified_frr_ratio",
        "guard_drift_alarms_total",
        "guard_drift_state",
        "guard_inputs_total",
        "guard_ready",
        "guard_second_opinions_total",
        "guard_shed_requests_total",
        "guard_uncheckable_inputs_total",
        "guard_upstream_ready",
        "guard_worker_restarts_total",
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_has_a_case_that_fires_and_one_that_is_quiet(name: str) -> None:
    assert {fires for alert, fires in cases() if alert == name} == {True, False}


def test_every_case_is_of_an_alert_there_is() -> None:
    assert {alert for alert, _ in cases()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(name: str) -> None:
    rule = ALERTS.split(f"- alert: {name}\n", 1)[1].split("- alert: ", 1)[0]
    assert re.search(r"severity: (page|warning)\n", rule)
    assert "summary: " in rule
    assert "description: " in rule
    assert f"runbook: deploy/prometheus/RUNBOOK.md#{name.lower()}\n" in rule


@pytest.mark.parametrize("name", NAMES)
def test_the_runbook_says_what_an_alert_means_what_to_look_at_and_what_to_do(name: str) -> None:
    section = RUNBOOK.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\*\*(Means|Look at|Do)\.\*\*", section, re.MULTILINE) == ["Means", "Look at", "Do"]


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == NAMES
