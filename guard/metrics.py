"""Count what happens, in a registry handed in.

What there is to count is in :mod:`guard.metrics_catalogue`. No caller can create a time series: a
model name that was not added, or a method that is not known, is counted as ``unknown``.

Every series of a model is created when the model is added, at 0, so that a rate is right from the
first input on, and kept at hand, so that counting an input costs a dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard.detection.threshold import Policy, Verdict
from guard.metric_families import counter, gauge, histogram, remove
from guard.metrics_catalogue import (
    GRPC_CODES,
    RPC_METHODS,
    UNKNOWN,
    DropReason,
    Outcome,
    Recorded,
    ShedReason,
    Stage,
    UncheckableReason,
)

__all__ = [
    "Metrics",
    "Outcome",
    "ShedReason",
    "Stage",
    "UncheckableReason",
    "counter",
    "gauge",
    "histogram",
]


@dataclass(frozen=True)
class _ModelSeries:
    """The series of one model, looked up once."""

    inputs: Mapping[str, Counter]
    uncheckable: Mapping[tuple[str, str], Counter]
    shed: Mapping[str, Counter]
    stages: Mapping[str, Histogram]
    passes: Histogram
    mean_entropy: Histogram
    batch_pairs: Histogram


class Metrics:
    """Counts what happens, in a registry of its own.

    Methods are named after events and may be called from any thread.

    Args:
        registry: Where the catalogue is registered; never the global one, so that two servers in
            one process do not share counts.
        models: Names that may become a ``model`` label from the start.
    """

    def __init__(self, registry: CollectorRegistry, models: Iterable[str] = ()) -> None:
        self._registry = registry
        self._rpcs = self._counter("guard_rpcs_total")
        self._rpc_seconds = self._histogram("guard_rpc_seconds")
        self._inputs = self._counter("guard_inputs_total")
        self._uncheckable = self._counter("guard_uncheckable_inputs_total")
        self._passes = self._histogram("guard_check_passes")
        self._mean_entropy = self._histogram("guard_mean_entropy_bits")
        self._stage_seconds = self._histogram("guard_stage_seconds")
        self._batch_pairs = self._histogram("guard_device_batch_pairs")
        self._queue_rows = self._gauge("guard_queue_rows")
        self._queue_limit = self._gauge("guard_queue_limit_rows")
        self._shed = self._counter("guard_shed_requests_total")
        self._info = self._gauge("guard_model_info")
        self._boundary = self._gauge("guard_boundary_bits")
        self._certified_frr = self._gauge("guard_certified_frr_ratio")
        self._score_shift = self._gauge("guard_score_shift_bits")
        self._audited = self._counter("guard_audit_records_total")
        self._audit_fails = self._gauge("guard_audit_failing")
        self._quarantined = self._gauge("guard_quarantine_items")
        self._quarantined_bytes = self._gauge("guard_quarantine_bytes")
        self._dropped = self._counter("guard_quarantine_dropped_total")
        for outcome in Recorded:
            self._audited.labels(outcome.value)
        for reason in DropReason:
            self._dropped.labels(reason.value)
        self._ready = self._gauge("guard_ready")
        self._unguarded = self._counter("guard_unguarded_requests_total")
        self._neighbours: set[str] = set()

        self._methods = frozenset(RPC_METHODS)
        self._codes = frozenset(GRPC_CODES)
        self._models: dict[str, _ModelSeries] = {}
        self._infos: dict[str, tuple[str, ...]] = {}
        self._rpc_series: dict[tuple[str, str, str], Counter] = {}
        self._rpc_timers: dict[str, Histogram] = {}
        for model in models:
            self.add_model(model)

    # What the operator does

    def add_model(self, model: str) -> None:
        """Let ``model`` be a label value, and start its counters at 0."""
        if model not in self._models:
            self._models[model] = self._series_of(model)

    def add_neighbour(self, model: str) -> None:
        """Let a model that is passed through be a label value where it is counted, and start at 0."""
        self._neighbours.add(model)
        self._unguarded.labels(model)

    def model_loaded(
        self,
        model: str,
        *,
        version: str,
        digest: str,
        blend: str,
        policy: Policy,
        boundary_bits: float,
        certified_frr: float | None,
        score_shift_bits: float | None = None,
    ) -> None:
        """Say what is served as ``model`` now; replaces what was said before.

        Args:
            model: Name it is served under.
            version: Version directory it was read from.
            digest: SHA-256 of the artifact's manifest.
            blend: Blend rule of its profile.
            policy: What is done with a suspicious input.
            boundary_bits: Mean entropy below which an input is suspicious where STRIP decides.
            certified_frr: The guaranteed bound; None where calibration gave none.
            score_shift_bits: How far mean entropies are off those at calibration; None if nothing was asked.
        """
        self.add_model(model)
        self._forget(model)
        self._infos[model] = (model, version, digest, blend, policy.value)
        self._info.labels(*self._infos[model]).set(1)
        self._boundary.labels(model).set(boundary_bits)
        if certified_frr is not None:
            self._certified_frr.labels(model).set(certified_frr)
        if score_shift_bits is not None:
            self._score_shift.labels(model).set(score_shift_bits)

    def model_unloaded(self, model: str) -> None:
        """Take down the gauges of ``model``; its counters stay, as counters must not go back."""
        self._forget(model)
        for queue in (self._queue_rows, self._queue_limit):
            remove(queue, model)

    def watch_queue(self, model: str, rows: Callable[[], int], limit: int) -> None:
        """Read the queue's length from ``rows`` at every scrape, until ``model`` is unloaded.

        Args:
            model: Whose queue it is.
            rows: Called from the scraping thread.
            limit: Rows that may wait before requests are shed.
        """
        self.add_model(model)
        self._queue_rows.labels(model).set_function(rows)
        self._queue_limit.labels(model).set(limit)

    def ready(self, is_ready: bool) -> None:
        """Say whether the guard takes requests."""
        self._ready.set(is_ready)

    # What those who keep records do

    def audit_records(self, written: int, lost: int) -> None:
        """Count records for the audit log that were written, and that were lost for want of room."""
        self._audited.labels(Recorded.WRITTEN.value).inc(written)
        self._audited.labels(Recorded.LOST.value).inc(lost)

    def audit_failing(self, failing: bool) -> None:
        """Say whether the audit log cannot be written just now."""
        self._audit_fails.set(failing)

    def quarantine_holds(self, items: int, held_bytes: int) -> None:
        """Say what is in quarantine."""
        self._quarantined.set(items)
        self._quarantined_bytes.set(held_bytes)

    def quarantine_dropped(self, reason: DropReason, count: int) -> None:
        """Count suspicious inputs that were not kept."""
        self._dropped.labels(reason.value).inc(count)

    # What callers cause

    def rpc(self, method: str, model: str, code: str, seconds: float) -> None:
        """Count an RPC that was answered.

        Args:
            method: Bare method name, such as ``ModelInfer``.
            model: Model named by the request; empty where the method names none.
            code: Name of the gRPC status code.
            seconds: From arrival to answer.
        """
        method = method if method in self._methods else UNKNOWN
        known = not model or model in self._models or model in self._neighbours
        model = model if known else UNKNOWN
        key = (method, model, code if code in self._codes else "UNKNOWN")
        if key not in self._rpc_series:
            self._rpc_timers[method] = self._rpc_seconds.labels(method)
            self._rpc_series[key] = self._rpcs.labels(*key)
        self._rpc_series[key].inc()
        self._rpc_timers[method].observe(seconds)

    def passed_on(self, model: str) -> None:
        """Count a request that was passed through without a check."""
        self._unguarded.labels(model).inc()

    def verdicts(self, model: str, verdict: Verdict, count: int) -> None:
        """Count inputs that got ``verdict``."""
        self._of(model).inputs[verdict].inc(count)

    def uncheckable(self, model: str, reason: UncheckableReason, outcome: Outcome, count: int) -> None:
        """Count inputs that could not be checked; their verdict is counted apart."""
        self._of(model).uncheckable[reason, outcome].inc(count)

    def checked(self, model: str, passes: int, mean_entropy_bits: float) -> None:
        """Record the cost and the evidence of one input's check."""
        series = self._of(model)
        series.passes.observe(passes)
        series.mean_entropy.observe(mean_entropy_bits)

    def stage(self, model: str, stage: Stage, seconds: float) -> None:
        """Record the time a request spent in a stage; ``device`` is :meth:`device_batch`'s."""
        self._of(model).stages[stage].observe(seconds)

    def device_batch(self, model: str, pairs: int, seconds: float) -> None:
        """Record one call of the device: how many images and blends, and how long."""
        series = self._of(model)
        series.batch_pairs.observe(pairs)
        series.stages[Stage.DEVICE].observe(seconds)

    def shed(self, model: str, reason: ShedReason) -> None:
        """Count a request that was dropped."""
        self._of(model).shed[reason].inc()

    def _of(self, model: str) -> _ModelSeries:
        series = self._models.get(model)
        if series is None:
            # Never stored under the caller's name, so the next unknown name ends here too.
            self.add_model(UNKNOWN)
            series = self._models[UNKNOWN]
        return series

    def _series_of(self, model: str) -> _ModelSeries:
        return _ModelSeries(
            inputs={v: self._inputs.labels(model, v.value) for v in Verdict},
            uncheckable={
                (r, o): self._uncheckable.labels(model, r.value, o.value)
                for r, o in product(UncheckableReason, Outcome)
            },
            shed={r: self._shed.labels(model, r.value) for r in ShedReason},
            stages={s: self._stage_seconds.labels(model, s.value) for s in Stage},
            passes=self._passes.labels(model),
            mean_entropy=self._mean_entropy.labels(model),
            batch_pairs=self._batch_pairs.labels(model),
        )

    def _forget(self, model: str) -> None:
        if model in self._infos:
            remove(self._info, *self._infos.pop(model))
        for told in (self._boundary, self._certified_frr, self._score_shift):
            remove(told, model)

    def _counter(self, name: str) -> Counter:
        return counter(name, self._registry)

    def _gauge(self, name: str) -> Gauge:
        return gauge(name, self._registry)

    def _histogram(self, name: str) -> Histogram:
        return histogram(name, self._registry)
