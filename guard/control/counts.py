"""Counts swaps and what fails of them, in a registry handed in."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry

from guard.metrics import counter, gauge, histogram
from guard.metrics_catalogue import SwapOutcome

__all__ = ["SwapCounts", "SwapOutcome"]


class SwapCounts:
    """Counts what happens to the versions of models; names of models come from the repository alone.

    Args:
        registry: Where that part of the catalogue is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._swaps = counter("guard_swaps_total", registry)
        self._candidate_failures = counter("guard_candidate_failures_total", registry)
        self._candidate_load = histogram("guard_candidate_load_seconds", registry)
        self._last_swap = gauge("guard_last_swap_timestamp_seconds", registry)
        self._record_failures = counter("guard_version_record_failures_total", registry)

    def add_model(self, model: str) -> None:
        """Start the counters of a model at 0, so that rates are right from the first event on."""
        for outcome in SwapOutcome:
            self._swaps.labels(model, outcome.value)
        for metric in (self._candidate_failures, self._candidate_load, self._record_failures):
            metric.labels(model)

    def candidate_loaded(self, model: str, seconds: float) -> None:
        """Record the time that loading a version beside the one that serves took."""
        self._candidate_load.labels(model).observe(seconds)

    def candidate_failed(self, model: str) -> None:
        """Count a version that cannot come to serve."""
        self._candidate_failures.labels(model).inc()

    def swap(self, model: str, outcome: SwapOutcome) -> None:
        """Count a swap or rollback, and note when it was if another version serves now."""
        self._swaps.labels(model, outcome.value).inc()
        if outcome is not SwapOutcome.FAILED:
            self._last_swap.labels(model).set(time.time())

    def record_failed(self, model: str) -> None:
        """Count a time that the record of what serves could not be written or read."""
        self._record_failures.labels(model).inc()
