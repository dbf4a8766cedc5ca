"""Counts what candidates do beside the versions that serve, in a registry handed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from guard.dataplane.trial import Pair
from guard.metrics import counter, gauge, histogram
from guard.metrics_catalogue import AnsweredBy, CanaryOutcome, Finding, TrialOutcome

__all__ = ["CanaryCounts"]


class CanaryCounts:
    """Counts what happens to the candidates of models; names of models come from the repository alone.

    Args:
        registry: Where that part of the catalogue is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._share = gauge("guard_canary_share_ratio", registry)
        self._requests = counter("guard_canary_requests_total", registry)
        self._seconds = histogram("guard_canary_seconds", registry)
        self._rows = counter("guard_canary_rows_total", registry)
        self._entropy = gauge("guard_canary_entropy_difference_bits", registry)
        self._dropped = counter("guard_canary_shadows_dropped_total", registry)
        self._ended = counter("guard_canaries_ended_total", registry)

    def add_model(self, model: str) -> None:
        """Start the counters of a model at 0, so that rates are right from the first event on."""
        for metric, values in (
            (self._requests, TrialOutcome),
            (self._seconds, AnsweredBy),
            (self._rows, Finding),
            (self._ended, CanaryOutcome),
        ):
            for value in values:
                metric.labels(model, value.value)
        self._dropped.labels(model)
        for level in (self._share, self._entropy):
            level.labels(model)

    def started(self, model: str, share: float) -> None:
        """Say that a candidate is tried."""
        self._share.labels(model).set(share)
        self._entropy.labels(model).set(0.0)

    def ended(self, model: str, outcome: CanaryOutcome) -> None:
        """Say that it is not any more, and count why."""
        self._share.labels(model).set(0.0)
        self._ended.labels(model, outcome.value).inc()

    def answered(self, model: str, by: AnsweredBy, seconds: float) -> None:
        """Record the time that an answer took while a candidate is tried."""
        self._seconds.labels(model, by.value).observe(seconds)
        if by is AnsweredBy.CANDIDATE:
            self._requests.labels(model, TrialOutcome.ANSWERED.value).inc()

    def failed(self, model: str) -> None:
        """Count a request on which the candidate failed."""
        self._requests.labels(model, TrialOutcome.FAILED.value).inc()

    def dropped(self, model: str) -> None:
        """Count a request that could not be compared."""
        self._dropped.labels(model).inc()

    def compared(self, model: str, pair: Pair) -> None:
        """Count what both versions made of a row."""
        self._rows.labels(model, _finding(pair).value).inc()

    def entropy_difference(self, model: str, bits: float) -> None:
        """Say how much the mean entropies differ so far."""
        self._entropy.labels(model).set(bits)


def _finding(pair: Pair) -> Finding:
    one, other = pair.candidate, pair.current
    if one.suspicious != other.suspicious:
        return Finding.REJECTED_BY_CANDIDATE if one.suspicious else Finding.REJECTED_BY_CURRENT
    if one.suspicious:
        return Finding.REJECTED_BY_BOTH
    return Finding.SAME if one.label == other.label else Finding.CLASS_DIFFERS
