"""Makes the metrics of the catalogue, each in the registry that is handed in."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard.metrics_catalogue import CATALOGUE

__all__ = ["counter", "gauge", "histogram", "remove"]

_M = TypeVar("_M", Counter, Gauge)


def counter(name: str, registry: CollectorRegistry) -> Counter:
    """Register a counter of the catalogue."""
    return _register(Counter, name, registry)


def gauge(name: str, registry: CollectorRegistry) -> Gauge:
    """Register a gauge of the catalogue."""
    return _register(Gauge, name, registry)


def histogram(name: str, registry: CollectorRegistry) -> Histogram:
    """Register a histogram of the catalogue."""
    spec = CATALOGUE[name]
    return Histogram(name, spec.help, tuple(spec.labels), buckets=spec.buckets, registry=registry)


def _register(kind: type[_M], name: str, registry: CollectorRegistry) -> _M:
    spec = CATALOGUE[name]
    return kind(name, spec.help, tuple(spec.labels), registry=registry)


def remove(gauge: Gauge, *labels: str) -> None:
    """Take down the series of a gauge, if it is there."""
    with suppress(KeyError):  # older clients raise where newer ones say nothing
        gauge.remove(*labels)
