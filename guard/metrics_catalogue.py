"""Every metric the guard exposes, with its labels and the values each may take.

A metric that is not in :data:`CATALOGUE` does not exist. The labels left open (``model`` and those
of ``guard_model_info``) hold what the operator loaded, never what a caller sent.
``tests/golden/metrics_catalogue.txt`` pins the list; alerts and dashboards are tested against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from guard.detection.capabilities.opinion import OPINIONS
from guard.detection.drift import DriftState
from guard.detection.superimpose import BLEND_RULES
from guard.detection.threshold import Policy, Verdict
from guard.metrics_labels import (
    GRPC_CODES,
    RPC_METHODS,
    UNKNOWN,
    AnsweredBy,
    CanaryOutcome,
    DriftSide,
    DropReason,
    Finding,
    Outcome,
    Recorded,
    SecondOpinionOutcome,
    ShedReason,
    Stage,
    SwapOutcome,
    TrialOutcome,
    UncheckableReason,
    UpstreamLoad,
    UpstreamPurpose,
)

__all__ = [
    "CATALOGUE",
    "GRPC_CODES",
    "RPC_METHODS",
    "UNKNOWN",
    "Across",
    "AnsweredBy",
    "CanaryOutcome",
    "DriftSide",
    "DropReason",
    "Finding",
    "Outcome",
    "Recorded",
    "SecondOpinionOutcome",
    "ShedReason",
    "Spec",
    "Stage",
    "SwapOutcome",
    "TrialOutcome",
    "UncheckableReason",
    "UpstreamLoad",
    "UpstreamPurpose",
]

Kind = Literal["counter", "gauge", "histogram"]
Across = Literal["sum", "min", "max", "mean", "log10_mean"]
OPEN: Final[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Spec:
    """One metric of the catalogue.

    Attributes:
        labels: Each label with every value it may take; none listed for a label that holds what
            the operator loaded.
        buckets: Upper bounds of a histogram, without the infinite one.
        across: What the values of several workers come to, ``log10_mean`` the logarithm of the mean of what
            they are logarithms of; counters and histograms always add up.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, Iterable[str]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    across: Across = "sum"


_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LOAD_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
_PASSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0)
_BITS: Final = (
    *(0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0),
)
_P_VALUES: Final = (0.001, 0.01, 0.05, *(tenths / 10 for tenths in range(1, 11)))
_PAIRS: Final = (1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
_MODEL: Final[Mapping[str, Iterable[str]]] = {"model": OPEN}

_SPECS: Final = (
    Spec(
        "guard_rpcs_total",
        "counter",
        "RPCs answered, by status code; model is empty where the RPC names none.",
        {"method": (*RPC_METHODS, UNKNOWN), "model": OPEN, "code": GRPC_CODES},
    ),
    Spec(
        "guard_rpc_seconds",
        "histogram",
        "Time from the arrival of an RPC to its answer.",
        {"method": (*RPC_METHODS, UNKNOWN)},
        _SECONDS,
    ),
    Spec("guard_inputs_total", "counter", "Inputs by verdict.", {**_MODEL, "verdict": tuple(Verdict)}),
    Spec(
        "guard_uncheckable_inputs_total",
        "counter",
        "Inputs that were not checked, by reason, and whether they were answered all the same.",
        {**_MODEL, "reason": tuple(UncheckableReason), "outcome": tuple(Outcome)},
    ),
    Spec(
        "guard_unguarded_requests_total",
        "counter",
        "Requests passed through to models that are not guarded, whatever became of them.",
        _MODEL,
    ),
    Spec("guard_check_passes", "histogram", "Blends spent on an input.", _MODEL, _PASSES),
    Spec(
        "guard_mean_entropy_bits",
        "histogram",
        "Mean entropy of the blends spent on an input: all N, unless the check stopped early.",
        _MODEL,
        _BITS,
    ),
    Spec(
        "guard_stage_seconds",
        "histogram",
        "Time spent waiting and in all, a request each; on the device, a device call each.",
        {**_MODEL, "stage": tuple(Stage)},
        _SECONDS,
    ),
    Spec("guard_device_batch_pairs", "histogram", "Images and blends in a device call.", _MODEL, _PAIRS),
    Spec("guard_queue_rows", "gauge", "Rows that wait for the device.", _MODEL),
    Spec("guard_queue_limit_rows", "gauge", "Rows that may wait before requests are shed.", _MODEL),
    Spec(
        "guard_shed_requests_total",
        "counter",
        "Requests dropped before their answer was ready.",
        {**_MODEL, "reason": tuple(ShedReason)},
    ),
    Spec(
        "guard_model_info",
        "gauge",
        "1 for each model served; its version, digest, blend rule and policy.",
        {
            **_MODEL,
            "version": OPEN,
            "digest": OPEN,
            "blend": tuple(BLEND_RULES),
            "policy": tuple(Policy),
        },
        across="max",
    ),
    Spec(
        "guard_boundary_bits",
        "gauge",
        "Mean entropy below which an input is suspicious where STRIP decides; the higher boundary of two.",
        _MODEL,
        across="max",
    ),
    Spec(
        "guard_certified_frr_ratio",
        "gauge",
        "Certified bound on the share of clean inputs found suspicious; absent without a guarantee.",
        _MODEL,
        across="max",
    ),
    # Each worker's evidence is a fair bet on its own inputs, and so is the mean of them, but not the highest.
    Spec(
        "guard_drift_frr_log10_evidence",
        "gauge",
        "Evidence that more inputs are suspicious than the certified rate allows, as a power of ten.",
        _MODEL,
        across="log10_mean",
    ),
    Spec(
        "guard_drift_cusum",
        "gauge",
        "How far p-values of inputs checked in full have moved, summed up, in standard deviations.",
        {**_MODEL, "side": tuple(DriftSide)},
        across="max",
    ),
    Spec(
        "guard_drift_state",
        "gauge",
        "1 for what the inputs look like now beside those of the calibration, else 0.",
        {**_MODEL, "state": tuple(DriftState)},
        across="max",
    ),
    Spec(
        "guard_drift_alarms_total",
        "counter",
        "Times that the state became attack or drift.",
        {**_MODEL, "state": tuple(state for state in DriftState if state is not DriftState.CALM)},
    ),
    Spec(
        "guard_full_check_p_value",
        "histogram",
        "Exact p-values of inputs picked to have all blends; uniform while nothing has changed.",
        _MODEL,
        _P_VALUES,
    ),
    Spec(
        "guard_second_opinions_total",
        "counter",
        "What capabilities beside the check say of inputs that it has judged; they never change a verdict.",
        {
            **_MODEL,
            "capability": OPINIONS,
            "verdict": (Verdict.ACCEPT, Verdict.FLAG, Verdict.REJECT),
            "outcome": tuple(SecondOpinionOutcome),
        },
    ),
    Spec(
        "guard_second_opinion_p_value",
        "histogram",
        "p-values that capabilities give accepted inputs; uniform but for what triggers pass the check.",
        {**_MODEL, "capability": OPINIONS},
        _P_VALUES,
    ),
    Spec(
        "guard_score_shift_bits",
        "gauge",
        "How far mean entropies of the stored images are off those at calibration; absent without a probe.",
        _MODEL,
        across="max",
    ),
    Spec(
        "guard_audit_records_total",
        "counter",
        "Records for the audit log, by whether they were written or lost for want of room.",
        {"outcome": tuple(Recorded)},
    ),
    Spec("guard_audit_failing", "gauge", "1 while the audit log cannot be written, else 0.", across="max"),
    Spec("guard_quarantine_items", "gauge", "Inputs in quarantine.", across="max"),
    Spec("guard_quarantine_bytes", "gauge", "Bytes of their files.", across="max"),
    Spec(
        "guard_quarantine_dropped_total",
        "counter",
        "Suspicious inputs that were not kept in quarantine.",
        {"reason": tuple(DropReason)},
    ),
    Spec(
        "guard_swaps_total",
        "counter",
        "Swaps and rollbacks; failed where the candidate did not come to serve and the old one serves on.",
        {**_MODEL, "outcome": tuple(SwapOutcome)},
    ),
    Spec(
        "guard_candidate_failures_total",
        "counter",
        "Versions that could not be served, at the start, in a swap, a rollback or by watching.",
        _MODEL,
    ),
    Spec(
        "guard_candidate_load_seconds",
        "histogram",
        "Time to read, verify, load, warm up and probe a version beside the one that serves.",
        _MODEL,
        _LOAD_SECONDS,
    ),
    Spec(
        "guard_last_swap_timestamp_seconds",
        "gauge",
        "When another version came to serve, seconds since the epoch; absent before the first time.",
        _MODEL,
        across="max",
    ),
    Spec(
        "guard_version_record_failures_total",
        "counter",
        "Times that the record of what serves could not be written or read; a restart may serve another.",
        _MODEL,
    ),
    Spec(
        "guard_canary_share_ratio",
        "gauge",
        "Share of the requests that a candidate answers; 0 while none is tried.",
        _MODEL,
        across="max",
    ),
    Spec(
        "guard_canary_requests_total",
        "counter",
        "Requests put to a candidate; what it failed on was answered by the current version.",
        {**_MODEL, "outcome": tuple(TrialOutcome)},
    ),
    Spec(
        "guard_canary_seconds",
        "histogram",
        "Time for a request while a candidate is tried, by who answered.",
        {**_MODEL, "answered_by": tuple(AnsweredBy)},
        _SECONDS,
    ),
    Spec(
        "guard_canary_rows_total",
        "counter",
        "Inputs that both a candidate and the current version looked at, by what they made of them.",
        {**_MODEL, "finding": tuple(Finding)},
    ),
    Spec(
        "guard_canary_entropy_difference_bits",
        "gauge",
        "Mean entropy of a candidate's blends less that of the current version's, on the same inputs; each "
        "over its own overlays, as many as it took, so that versions calibrated apart differ by that alone.",
        _MODEL,
        across="mean",
    ),
    Spec(
        "guard_canary_shadows_dropped_total",
        "counter",
        "Requests of a candidate that could not be compared, as the current version had too much to do.",
        _MODEL,
    ),
    Spec(
        "guard_canaries_ended_total",
        "counter",
        "Candidates taken off the traffic or promoted, by why; all but promoted and stopped are limits.",
        {**_MODEL, "outcome": tuple(CanaryOutcome)},
    ),
    Spec(
        "guard_upstream_calls_total",
        "counter",
        "Calls to the server of a model, by what they were for and the status that came back.",
        {**_MODEL, "purpose": tuple(UpstreamPurpose), "code": GRPC_CODES},
    ),
    Spec(
        "guard_upstream_seconds",
        "histogram",
        "Time for a call to the server of a model.",
        {**_MODEL, "purpose": tuple(UpstreamPurpose)},
        _SECONDS,
    ),
    Spec(
        "guard_upstream_retries_total",
        "counter",
        "Requests held back, nothing sent, until there was a connection to the model's server again.",
        _MODEL,
    ),
    Spec(
        "guard_upstream_loads_total",
        "counter",
        "Versions that the server of a model was asked to load, by how that went.",
        {**_MODEL, "outcome": tuple(UpstreamLoad)},
    ),
    Spec(
        "guard_upstream_load_seconds",
        "histogram",
        "Time from asking the server of a model to load a version until it is ready, or is not to be.",
        _MODEL,
        _LOAD_SECONDS,
    ),
    Spec(
        "guard_upstream_ready",
        "gauge",
        "1 while the server of a model takes requests and answers as at calibration, else 0.",
        _MODEL,
        across="min",
    ),
    Spec("guard_workers", "gauge", "Worker processes that serve; absent where one process does it all."),
    Spec("guard_worker_restarts_total", "counter", "Worker processes that ended and were started again."),
    Spec(
        "guard_worker_scrape_failures_total",
        "counter",
        "Times that a worker did not say in time what it counted; what it last said is shown.",
    ),
    Spec("guard_ready", "gauge", "1 while the guard takes requests, else 0.", across="min"),
)

CATALOGUE: Final[Mapping[str, Spec]] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every metric the guard exposes, by name; ``tests/golden/metrics_catalogue.txt`` pins it."""
