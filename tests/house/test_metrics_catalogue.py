"""The metrics catalogue is pinned, closed, and what the server really exposes.

After a wanted change, run this file as a script: it rewrites ``tests/golden/metrics_catalogue.txt``.
"""

from __future__ import annotations

import shutil
import subprocess
from itertools import product
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from guard.control.canary_counts import CanaryCounts
from guard.control.counts import SwapCounts
from guard.dataplane.drift_counts import DriftCounts
from guard.dataplane.opinion_counts import OpinionCounts
from guard.dataplane.trial import Pair, Seen
from guard.detection.drift import Budget, DriftMonitor, DriftState
from guard.detection.threshold import Policy, Verdict
from guard.metrics import Metrics, Outcome, ShedReason, Stage, UncheckableReason
from guard.metrics_catalogue import (
    CATALOGUE,
    GRPC_CODES,
    RPC_METHODS,
    AnsweredBy,
    CanaryOutcome,
    SecondOpinionOutcome,
    Spec,
    SwapOutcome,
)
from guard.rpc.pb import guard_admin_pb2, open_inference_pb2
from guard.upstream.counts import UpstreamCounts, UpstreamPurpose
from guard.workers.counts import WorkerCounts

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics_catalogue.txt"

Sample = tuple[str, dict[str, str], float]


def rendered() -> str:
    return "\n".join(line for spec in CATALOGUE.values() for line in _lines(spec)) + "\n"


def _lines(spec: Spec) -> list[str]:
    labels = [
        f"    {label}: {', '.join(values) or 'what is loaded'}" for label, values in spec.labels.items()
    ]
    buckets = [f"    buckets: {', '.join(f'{bound:g}' for bound in spec.buckets)}"] if spec.buckets else []
    return [f"{spec.name} {spec.kind}", f"    {spec.help}", *labels, *buckets]


def load(metrics: Metrics, model: str, *, version: str = "1", certified_frr: float | None = 0.01) -> None:
    metrics.model_loaded(
        model,
        version=version,
        digest="ab" * 32,
        blend="add",
        policy=Policy.ENFORCE,
        boundary_bits=0.25,
        certified_frr=certified_frr,
        score_shift_bits=0.001,
    )


def everything_happens(metrics: Metrics) -> None:
    metrics.add_neighbour("words")
    metrics.passed_on("words")
    load(metrics, "resnet")
    metrics.watch_queue("resnet", lambda: 3, limit=64)
    metrics.ready(True)
    metrics.rpc("ModelInfer", "resnet", "OK", 0.004)
    metrics.rpc("ServerLive", "", "OK", 0.001)
    for verdict in Verdict:
        metrics.verdicts("resnet", verdict, 2)
    for reason, outcome in product(UncheckableReason, Outcome):
        metrics.uncheckable("resnet", reason, outcome, 1)
    metrics.checked("resnet", passes=8, mean_entropy_bits=0.02)
    for stage in (Stage.QUEUE, Stage.TOTAL):
        metrics.stage("resnet", stage, 0.002)
    metrics.device_batch("resnet", pairs=40, seconds=0.01)
    for shed in ShedReason:
        metrics.shed("resnet", shed)


def everything_is_asked_about(counts: OpinionCounts) -> None:
    counts.add_model("resnet")
    counts.heard("resnet", "scale_up", Verdict.FLAG, SecondOpinionOutcome.AGREES)
    counts.accepted("resnet", "scale_up", 0.5)


def everything_is_swapped(counts: SwapCounts) -> None:
    counts.add_model("resnet")
    for outcome in SwapOutcome:
        counts.swap("resnet", outcome)
    counts.candidate_loaded("resnet", 1.5)
    counts.candidate_failed("resnet")
    counts.record_failed("resnet")


def everything_is_tried(counts: CanaryCounts) -> None:
    counts.add_model("resnet")
    counts.started("resnet", 0.1)
    for by in AnsweredBy:
        counts.answered("resnet", by, 0.01)
    counts.failed("resnet")
    counts.dropped("resnet")
    counts.compared("resnet", Pair(Seen(1, True, 0.5), Seen(1, False, 0.5)))
    counts.entropy_difference("resnet", 0.25)
    for outcome in CanaryOutcome:
        counts.ended("resnet", outcome)


def everything_is_asked_of_a_server(counts: UpstreamCounts) -> None:
    counts.add_model("resnet")
    for purpose in UpstreamPurpose:
        counts.called("resnet", purpose, "UNAVAILABLE", 0.01)
    counts.retried("resnet")
    counts.ready("resnet", True)


def everything_is_watched(counts: DriftCounts) -> None:
    budget = Budget(0.01, certified=True)
    monitor = DriftMonitor(budget, classes=10, references=99, false_alarm_rate=0.001, cusum_limit=12.0)
    counts.add_model("resnet", lambda: monitor)
    counts.alarm("resnet", DriftState.ATTACK)
    counts.measured("resnet", 0.5)


def samples(registry: CollectorRegistry, name: str) -> list[Sample]:
    return [
        (s.name, s.labels, s.value) for family in registry.collect() for s in family.samples if s.name == name
    ]


def series(registry: CollectorRegistry) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (s.name, tuple(sorted(s.labels.items()))) for family in registry.collect() for s in family.samples
    }


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def test_the_catalogue_is_the_golden_one() -> None:
    assert rendered() == GOLDEN.read_text(encoding="utf-8"), f"if this is wanted: python {__file__}"


def test_names_follow_the_house_rules() -> None:
    units = {"histogram": ("_seconds", "_bits", "_passes", "_pairs", "_p_value"), "counter": ("_total",)}
    for spec in CATALOGUE.values():
        assert spec.name.startswith("guard_")
        assert spec.name.endswith(units.get(spec.kind, "")), spec.name
        assert (spec.kind == "histogram") == bool(spec.buckets)
        assert list(spec.buckets) == sorted(set(spec.buckets))


def test_what_is_exposed_is_the_catalogue(registry: CollectorRegistry, metrics: Metrics) -> None:
    everything_happens(metrics)
    everything_is_swapped(SwapCounts(registry))
    everything_is_tried(CanaryCounts(registry))
    everything_is_asked_of_a_server(UpstreamCounts(registry))
    everything_is_watched(DriftCounts(registry))
    everything_is_asked_about(OpinionCounts(registry))
    WorkerCounts(registry)

    seen: dict[str, tuple[str, str, set[str]]] = {}
    for family in parse_text(generate_latest(registry).decode()):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        seen[name] = (family.type, family.documentation, labels)

    assert seen == {s.name: (s.kind, s.help, set(s.labels)) for s in CATALOGUE.values()}


def test_every_label_value_is_one_of_the_catalogue(registry: CollectorRegistry, metrics: Metrics) -> None:
    everything_happens(metrics)
    for name, labels in series(registry):
        spec = CATALOGUE.get(name)
        if spec is None:
            continue
        for label, value in labels:
            allowed = tuple(spec.labels[label])
            assert not allowed or value in allowed, f"{name} {label}={value!r}"


def test_a_verdict_reason_or_stage_outside_the_catalogue_is_an_error(metrics: Metrics) -> None:
    refusals = (KeyError, TypeError)  # a TypeError where annotations are checked, as in tests
    metrics.add_model("resnet")
    with pytest.raises(refusals):
        metrics.verdicts("resnet", "perhaps", 1)  # type: ignore[arg-type]
    with pytest.raises(refusals):
        metrics.uncheckable("resnet", "tired", Outcome.ANSWERED, 1)  # type: ignore[arg-type]
    with pytest.raises(refusals):
        metrics.stage("resnet", "lunch", 1.0)  # type: ignore[arg-type]
    with pytest.raises(refusals):
        metrics.shed("resnet", "mood")  # type: ignore[arg-type]


def test_a_caller_cannot_create_series_by_names_of_its_own(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    metrics.add_model("resnet")
    metrics.rpc("Nope", "nope", "NOPE", 0.1)
    metrics.rpc("Nope", "", "NOPE", 0.1)
    before = series(registry)

    for i in range(200):
        metrics.rpc(f"Method{i}", f"model-{i}", f"CODE_{i}", 0.1)
        metrics.rpc("ModelInfer\n", 'x"} 1\nguard_ready 1', "OK", 0.1)

    assert series(registry) - before == {
        ("guard_rpcs_total", (("code", "OK"), ("method", "unknown"), ("model", "unknown"))),
        ("guard_rpcs_created", (("code", "OK"), ("method", "unknown"), ("model", "unknown"))),
    }
    assert registry.get_sample_value(
        "guard_rpcs_total", {"method": "unknown", "model": "unknown", "code": "UNKNOWN"}
    ) == pytest.approx(201)


def test_events_of_a_model_nobody_added_share_one_label(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    for i in range(50):
        metrics.shed(f"model-{i}", ShedReason.CANCELLED)
    models = {labels["model"] for _, labels, _ in samples(registry, "guard_shed_requests_total")}
    assert models == {"unknown"}
    assert registry.get_sample_value(
        "guard_shed_requests_total", {"model": "unknown", "reason": "cancelled"}
    ) == pytest.approx(50)


def test_the_counters_of_a_model_start_at_zero(registry: CollectorRegistry) -> None:
    Metrics(registry, models=["resnet"])
    for name in ("guard_inputs_total", "guard_uncheckable_inputs_total", "guard_shed_requests_total"):
        closed = [tuple(v) for label, v in CATALOGUE[name].labels.items() if label != "model"]
        found = samples(registry, name)
        assert len(found) == len(list(product(*closed)))
        assert {value for _, _, value in found} == {0.0}


def test_events_are_counted_where_the_catalogue_says(registry: CollectorRegistry, metrics: Metrics) -> None:
    everything_happens(metrics)
    metrics.verdicts("resnet", Verdict.REJECT, 5)

    expected: list[tuple[str, dict[str, str], float]] = [
        ("guard_inputs_total", {"model": "resnet", "verdict": "reject"}, 7),
        (
            "guard_uncheckable_inputs_total",
            {"model": "resnet", "reason": "non_finite", "outcome": "refused"},
            1,
        ),
        ("guard_check_passes_sum", {"model": "resnet"}, 8),
        ("guard_mean_entropy_bits_bucket", {"model": "resnet", "le": "0.01"}, 0),
        ("guard_mean_entropy_bits_bucket", {"model": "resnet", "le": "0.03"}, 1),
        ("guard_stage_seconds_count", {"model": "resnet", "stage": "device"}, 1),
        ("guard_device_batch_pairs_sum", {"model": "resnet"}, 40),
        ("guard_rpc_seconds_sum", {"method": "ModelInfer"}, 0.004),
        ("guard_rpcs_total", {"method": "ServerLive", "model": "", "code": "OK"}, 1),
        ("guard_queue_rows", {"model": "resnet"}, 3),
        ("guard_queue_limit_rows", {"model": "resnet"}, 64),
        ("guard_boundary_bits", {"model": "resnet"}, 0.25),
        ("guard_certified_frr_ratio", {"model": "resnet"}, 0.01),
        ("guard_score_shift_bits", {"model": "resnet"}, 0.001),
        ("guard_ready", {}, 1),
    ]
    found = {(name, *labels.items()): registry.get_sample_value(name, labels) for name, labels, _ in expected}
    assert found == {(name, *labels.items()): pytest.approx(value) for name, labels, value in expected}


def test_a_swap_leaves_one_version_in_the_info(registry: CollectorRegistry, metrics: Metrics) -> None:
    load(metrics, "resnet", version="1", certified_frr=0.01)
    load(metrics, "resnet", version="2", certified_frr=None)

    assert [labels["version"] for _, labels, _ in samples(registry, "guard_model_info")] == ["2"]
    assert samples(registry, "guard_certified_frr_ratio") == []


def test_an_unloaded_model_keeps_its_counters_and_loses_its_gauges(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    everything_happens(metrics)
    metrics.model_unloaded("resnet")

    gauges = [s.name for s in CATALOGUE.values() if s.kind == "gauge" and "model" in s.labels]
    assert len(gauges) == 13
    assert [name for name in gauges if samples(registry, name)] == []
    assert registry.get_sample_value(
        "guard_inputs_total", {"model": "resnet", "verdict": "accept"}
    ) == pytest.approx(2)


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics(first, models=["resnet"]).verdicts("resnet", Verdict.ACCEPT, 9)
    Metrics(second, models=["resnet"])

    accepted = {"model": "resnet", "verdict": "accept"}
    assert first.get_sample_value("guard_inputs_total", accepted) == pytest.approx(9)
    assert second.get_sample_value("guard_inputs_total", accepted) == pytest.approx(0)
    assert [family.name for family in REGISTRY.collect() if family.name.startswith("guard_")] == []


def test_the_exposition_parses_whatever_a_model_is_called(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    name = 'a "b"\\ \n# é'
    everything_happens(metrics)
    load(metrics, name)

    text = list(parse_text(generate_latest(registry).decode()))
    openm_text = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    openm = list(parse_openmetrics(openm_text))  # type: ignore[no-untyped-call]

    for families in (text, openm):
        info = next(family for family in families if family.name == "guard_model_info")
        assert {sample.labels["model"] for sample in info.samples} == {"resnet", name}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is in Debian's `prometheus`")
def test_promtool_finds_nothing_to_say_against_the_metrics(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    everything_happens(metrics)
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        timeout=60,
        check=False,
    )
    # Entropy is in bits; promtool takes a bit for a piece of a byte.
    complaints = [line for line in checked.stderr.decode().splitlines() if "_bits" not in line]
    assert (checked.stdout, complaints) == (b"", [])


def test_the_codes_are_those_of_grpc() -> None:
    assert set(GRPC_CODES) == {code.name for code in grpc.StatusCode}


def test_the_methods_are_those_of_the_inference_service_of_health_and_of_the_admin_face() -> None:
    inference = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    admin = guard_admin_pb2.DESCRIPTOR.services_by_name["GuardAdmin"]
    names = [method.name for service in (inference, admin) for method in service.methods]
    assert sorted(RPC_METHODS) == sorted([*names, "Check", "Watch"])


if __name__ == "__main__":
    GOLDEN.write_text(rendered(), encoding="utf-8")
