"""Counts calls to model servers, in a registry handed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from guard.metrics import counter, gauge, histogram
from guard.metrics_catalogue import UpstreamLoad, UpstreamPurpose

__all__ = ["UpstreamCounts", "UpstreamLoad", "UpstreamPurpose"]


class UpstreamCounts:
    """Counts what is asked of model servers; names of models come from the repository alone.

    Args:
        registry: Where that part of the catalogue is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = counter("guard_upstream_calls_total", registry)
        self._seconds = histogram("guard_upstream_seconds", registry)
        self._retries = counter("guard_upstream_retries_total", registry)
        self._loads = counter("guard_upstream_loads_total", registry)
        self._load_seconds = histogram("guard_upstream_load_seconds", registry)
        self._ready = gauge("guard_upstream_ready", registry)
        self._series: dict[tuple[str, UpstreamPurpose, str], tuple[Counter, Histogram]] = {}

    def add_model(self, model: str) -> None:
        """Start the series of a model, so that rates are right from the first event on."""
        for purpose in UpstreamPurpose:
            self._calls.labels(model, purpose.value, "OK")
            self._seconds.labels(model, purpose.value)
        for outcome in UpstreamLoad:
            self._loads.labels(model, outcome.value)
        self._load_seconds.labels(model)
        self._retries.labels(model)
        self._ready.labels(model).set(0)

    def called(self, model: str, purpose: UpstreamPurpose, code: str, seconds: float) -> None:
        """Count a call that ended, with the name of its gRPC status code."""
        key = (model, purpose, code)
        series = self._series.get(key)
        if series is None:  # looking one up anew costs more than counting it
            series = (
                self._calls.labels(model, purpose.value, code),
                self._seconds.labels(model, purpose.value),
            )
            self._series[key] = series
        series[0].inc()
        series[1].observe(seconds)

    def retried(self, model: str) -> None:
        """Count a request that was held back until there was a connection, and sent then."""
        self._retries.labels(model).inc()

    def loaded(self, model: str, outcome: UpstreamLoad, seconds: float) -> None:
        """Count a version that a server was asked to load."""
        self._loads.labels(model, outcome.value).inc()
        self._load_seconds.labels(model).observe(seconds)

    def ready(self, model: str, is_ready: bool) -> None:
        """Say whether a model's server is ready."""
        self._ready.labels(model).set(is_ready)
