"""Counts what second opinions say, in a registry handed in."""

from __future__ import annotations

from itertools import product

from prometheus_client import CollectorRegistry

from guard.detection.capabilities.opinion import OPINIONS
from guard.detection.threshold import Verdict
from guard.metrics import counter, histogram
from guard.metrics_catalogue import SecondOpinionOutcome

__all__ = ["CHECKED", "OpinionCounts"]

CHECKED = (Verdict.ACCEPT, Verdict.FLAG, Verdict.REJECT)
"""Verdicts that a check comes to, about which others may be asked."""


class OpinionCounts:
    """Counts second opinions; names of models come from the repository alone.

    Args:
        registry: Where that part of the catalogue is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._opinions = counter("guard_second_opinions_total", registry)
        self._p_values = histogram("guard_second_opinion_p_value", registry)

    def add_model(self, model: str) -> None:
        """Let a model be counted, from 0."""
        for name, verdict, outcome in product(OPINIONS, CHECKED, SecondOpinionOutcome):
            self._opinions.labels(model, name, verdict.value, outcome.value)

    def heard(self, model: str, name: str, verdict: Verdict, outcome: SecondOpinionOutcome) -> None:
        """Count what one said of an input, or that it did not."""
        self._opinions.labels(model, name, verdict.value, outcome.value).inc()

    def accepted(self, model: str, name: str, p_value: float) -> None:
        """Record the p-value of an input that the check accepts."""
        self._p_values.labels(model, name).observe(p_value)
