"""Shows what drift monitors see, in a registry handed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry

from guard.detection.drift import DriftMonitor, DriftState
from guard.metrics import counter, gauge, histogram
from guard.metrics_catalogue import DriftSide

__all__ = ["DriftCounts"]

_Watched = Callable[[], DriftMonitor]


class DriftCounts:
    """Shows the monitors of models; names of models come from the repository alone.

    Gauges are read at every scrape, from the scraping thread, so that inputs cost nothing here.

    Args:
        registry: Where that part of the catalogue is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._evidence = gauge("guard_drift_frr_log10_evidence", registry)
        self._cusum = gauge("guard_drift_cusum", registry)
        self._state = gauge("guard_drift_state", registry)
        self._alarms = counter("guard_drift_alarms_total", registry)
        self._p_values = histogram("guard_full_check_p_value", registry)

    def add_model(self, model: str, watched: _Watched) -> None:
        """Show a model from now on.

        Args:
            model: Its name.
            watched: Returns the monitor of what serves.
        """
        self._evidence.labels(model).set_function(lambda: watched().exceeded.log10_evidence)
        self._cusum.labels(model, DriftSide.LOWER.value).set_function(lambda: watched().moved.lower.value)
        self._cusum.labels(model, DriftSide.UPPER.value).set_function(lambda: watched().moved.upper.value)
        for state in DriftState:
            self._state.labels(model, state.value).set_function(partial(_is, watched, state))
            if state is not DriftState.CALM:
                self._alarms.labels(model, state.value)
        self._p_values.labels(model)

    def alarm(self, model: str, state: DriftState) -> None:
        """Count that a model's state became this one."""
        self._alarms.labels(model, state.value).inc()

    def measured(self, model: str, p: float) -> None:
        """Record the exact p-value of an input."""
        self._p_values.labels(model).observe(p)


def _is(watched: _Watched, state: DriftState) -> float:
    return float(watched().finding.state is state)
