"""Counts what becomes of workers, in the parent's own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from guard.metrics import counter, gauge

__all__ = ["WorkerCounts"]


class WorkerCounts:
    """Counts what happens to workers; its methods may be called from any thread.

    Args:
        registry: Where that part of the catalogue is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._serving = gauge("guard_workers", registry)
        self._restarts = counter("guard_worker_restarts_total", registry)
        self._failed_scrapes = counter("guard_worker_scrape_failures_total", registry)

    def serving(self, count: int) -> None:
        """Say how many serve."""
        self._serving.set(count)

    def restarted(self) -> None:
        """Count one that is started again."""
        self._restarts.inc()

    def scrape_failed(self) -> None:
        """Count one that did not say what it counted."""
        self._failed_scrapes.inc()
