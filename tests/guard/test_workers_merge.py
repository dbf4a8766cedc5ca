"""What several processes counted becomes one exposition: as if one process had counted it all."""

from __future__ import annotations

from functools import partial
from math import log10

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from guard.control.counts import SwapCounts
from guard.dataplane.drift_counts import DriftCounts
from guard.detection.drift import Budget, DriftMonitor
from guard.detection.threshold import Policy, Verdict
from guard.metrics import Metrics, Stage
from guard.metrics_catalogue import CATALOGUE
from guard.workers.merge import counted_only, merge


class Process:
    """What one process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, ["tiny"])

    def families(self) -> list:
        return list(text_string_to_metric_families(openmetrics(self.registry).decode()))


class Merged(Collector):
    def __init__(self, *parts: list) -> None:
        self.parts = parts

    def collect(self) -> list:
        return merge(self.parts)


def value(parts: list[list], name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(Merged(*parts))
    return registry.get_sample_value(name, labels)


def test_counters_and_histograms_add_up_bucket_by_bucket() -> None:
    one, other = Process(), Process()
    one.metrics.verdicts("tiny", Verdict.REJECT, 2)
    other.metrics.verdicts("tiny", Verdict.REJECT, 3)
    for process, seconds in ((one, 0.002), (one, 0.2), (other, 0.2)):
        process.metrics.stage("tiny", Stage.TOTAL, seconds)
    parts = [one.families(), other.families()]

    assert value(parts, "guard_inputs_total", model="tiny", verdict="reject") == 5
    of_total = {"model": "tiny", "stage": "total"}
    assert value(parts, "guard_stage_seconds_count", **of_total) == 3
    assert value(parts, "guard_stage_seconds_bucket", le="0.0025", **of_total) == 1
    assert value(parts, "guard_stage_seconds_bucket", le="0.25", **of_total) == 3
    assert value(parts, "guard_stage_seconds_sum", **of_total) == 0.402


def test_a_gauge_is_merged_by_what_it_means() -> None:
    one, other = Process(), Process()
    for process, ready, rows in ((one, True, 3), (other, False, 4)):
        process.metrics.ready(ready)
        process.metrics.watch_queue("tiny", lambda rows=rows: rows, limit=100)
        process.metrics.model_loaded(
            "tiny",
            version="1",
            digest="ab" * 32,
            blend="add",
            policy=Policy.FLAG,
            boundary_bits=0.5,
            certified_frr=0.01,
        )
    parts = [one.families(), other.families()]
    info = {"version": "1", "digest": "ab" * 32, "blend": "add", "policy": "flag"}

    assert value(parts, "guard_ready") == 0
    assert value(parts, "guard_queue_rows", model="tiny") == 7
    assert value(parts, "guard_queue_limit_rows", model="tiny") == 200
    assert value(parts, "guard_boundary_bits", model="tiny") == 0.5
    assert value(parts, "guard_model_info", model="tiny", **info) == 1


def test_a_series_is_as_old_as_the_oldest_of_it() -> None:
    one, other = Process(), Process()
    label = {"model": "tiny", "verdict": "accept"}
    created = [each.registry.get_sample_value("guard_inputs_created", label) for each in (one, other)]

    assert value([one.families(), other.families()], "guard_inputs_created", **label) == min(created)


def test_of_a_process_that_is_gone_only_counts_remain() -> None:
    gone = Process()
    gone.metrics.ready(True)
    gone.metrics.verdicts("tiny", Verdict.ACCEPT, 4)
    parts = [counted_only(gone.families())]

    assert value(parts, "guard_inputs_total", model="tiny", verdict="accept") == 4
    assert value(parts, "guard_ready") is None


def test_one_process_merged_is_exposed_as_it_exposes_itself() -> None:
    process = Process()
    SwapCounts(process.registry).add_model("tiny")
    process.metrics.rpc("ModelInfer", "tiny", "OK", 0.01)
    process.metrics.checked("tiny", 8, 0.2)
    registry = CollectorRegistry()
    registry.register(Merged(process.families()))

    assert sorted(generate_latest(registry).splitlines()) == sorted(
        generate_latest(process.registry).splitlines()
    )
    assert openmetrics(registry) == openmetrics(process.registry)


def test_readiness_is_that_of_the_least_ready_and_queues_are_added() -> None:
    rules = {spec.name: spec.across for spec in CATALOGUE.values() if spec.kind == "gauge"}

    assert {name for name, rule in rules.items() if rule == "min"} == {"guard_ready", "guard_upstream_ready"}
    assert {name for name, rule in rules.items() if rule == "sum"} == {
        "guard_queue_rows",
        "guard_queue_limit_rows",
        "guard_workers",
    }


def _same(monitor: DriftMonitor) -> DriftMonitor:
    return monitor


def test_evidence_of_workers_is_that_of_their_mean_which_no_worker_exceeds_by_chance_more_often() -> None:
    monitors = [
        DriftMonitor(Budget(0.01, True), classes=2, references=9, false_alarm_rate=1e-3, cusum_limit=12.0)
        for _ in range(3)
    ]
    parts = []
    for monitor, suspicious in zip(monitors, (0, 4, 50), strict=True):
        process = Process()
        DriftCounts(process.registry).add_model("tiny", partial(_same, monitor))
        for _ in range(suspicious):
            monitor.checked(True, 1)
        parts.append(process.families())

    mean = sum(monitor.exceeded.evidence for monitor in monitors) / 3
    merged = value(parts, "guard_drift_frr_log10_evidence", model="tiny")
    assert merged == pytest.approx(log10(mean))
    assert value(parts, "guard_drift_state", model="tiny", state="attack") == 1.0
