"""What is counted of a candidate on trial, and when it is too much. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from guard.control.rate_test import RateTest
from guard.dataplane.trial import Pair
from guard.metrics_catalogue import CanaryOutcome

__all__ = ["Breach", "CanaryLimits", "CanaryTally"]

_KEPT: Final = 1000
_FOR_A_P99: Final = 100
_P99_EVERY: Final = 25
_SLOW_ALLOWED: Final = 0.02  # 1 % by the meaning of a p99, and as much again as it is only estimated


@dataclass(frozen=True)
class CanaryLimits:
    """What a candidate may do before it is taken off the traffic.

    Each rate has to be exceeded provably, see :mod:`guard.control.rate_test`, not just by chance.

    Attributes:
        max_error_rate: Share of its requests on which it may fail.
        max_latency_ratio: How many times the current version's p99 it may take for a request; 2 % of them may
            take longer. Judged once each has answered 100 requests, so never at a share of 1.
        max_rejection_rate: Share of the rows that the current version accepts which it may find suspicious,
            besides the false-rejection rate certified for it.
        max_disagreement: Share of the rows that both accept to which it may give another class.
        min_rows: Rows that are compared before rejections and classes are judged.
    """

    max_error_rate: float = 0.01
    max_latency_ratio: float = 3.0
    max_rejection_rate: float = 0.02
    max_disagreement: float = 0.1
    min_rows: int = 200


@dataclass(frozen=True)
class Breach:
    """A limit that was exceeded.

    Attributes:
        outcome: Which one.
        why: In words.
    """

    outcome: CanaryOutcome
    why: str


class CanaryTally:
    """Counts what a candidate does beside the current version.

    Args:
        limits: What it may do.
        certified_frr: Bound of the share of clean inputs that it finds suspicious, or the share that it was
            calibrated for.
    """

    def __init__(self, limits: CanaryLimits, certified_frr: float) -> None:
        self._limits = limits
        self._asked = self._answered = self._compared = self._dropped = self._rows = 0
        self._class_differs = self._verdict_differs = self._suspicious = self._suspicious_to_current = 0
        self._bits = 0.0
        self._errors = RateTest(limits.max_error_rate)
        self._rejections = RateTest(certified_frr + limits.max_rejection_rate)
        self._classes = RateTest(limits.max_disagreement)
        self._slow = RateTest(_SLOW_ALLOWED)
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._current_seconds: deque[float] = deque(maxlen=_KEPT)
        self._current_p99: float | None = None
        self._current_answered = 0

    def asked(self) -> None:
        """Count a request that was put to the candidate."""
        self._asked += 1

    def answered(self, seconds: float) -> None:
        """Count an answer of the candidate."""
        self._answered += 1
        self._errors.add(0, 1)
        self._seconds.append(seconds)
        if self._current_p99 is not None:
            self._slow.add(int(self.too_long(seconds)), 1)

    def too_long(self, seconds: float) -> bool:
        """Whether a request may not take so long; nothing is too long while no p99 is known."""
        p99 = self._current_p99
        return p99 is not None and seconds > self._limits.max_latency_ratio * p99

    def failed(self) -> None:
        """Count a request on which the candidate failed."""
        self._errors.add(1, 1)

    def current_answered(self, seconds: float) -> None:
        """Count an answer of the current version to a request of its own."""
        self._current_seconds.append(seconds)
        self._current_answered += 1
        if self._current_answered >= _FOR_A_P99 and self._current_answered % _P99_EVERY == 0:
            self._current_p99 = _quantile(self._current_seconds, 0.99)

    def dropped(self) -> None:
        """Count a request that could not be compared."""
        self._dropped += 1

    def compared(self, pairs: Sequence[Pair]) -> None:
        """Count what both versions made of the rows of a request."""
        self._compared += 1
        for pair in pairs:
            one, other = pair.candidate, pair.current
            self._rows += 1
            self._class_differs += one.label != other.label
            self._verdict_differs += one.suspicious != other.suspicious
            self._suspicious += one.suspicious
            self._suspicious_to_current += other.suspicious
            self._bits += one.mean_bits - other.mean_bits
            if not other.suspicious:
                self._rejections.add(int(one.suspicious), 1)
            if not (one.suspicious or other.suspicious):
                self._classes.add(int(one.label != other.label), 1)

    def breach(self) -> Breach | None:
        """Return the first limit that is provably exceeded; None while there is none."""
        if self._errors.exceeded:
            return Breach(CanaryOutcome.ERRORS, _words(self._errors, "requests failed"))
        if self._current_p99 is not None and self._slow.trials >= _FOR_A_P99 and self._slow.exceeded:
            longest = self._limits.max_latency_ratio * self._current_p99
            return Breach(
                CanaryOutcome.LATENCY,
                _words(self._slow, f"answers took longer than {longest:.4g} s")
                + f"; that is max_latency_ratio ({self._limits.max_latency_ratio:g}) times the current p99",
            )
        if self._rows < self._limits.min_rows:
            return None
        if self._rejections.exceeded:
            words = _words(self._rejections, "rows that the current version accepts were found suspicious")
            return Breach(CanaryOutcome.REJECTIONS, words)
        if self._classes.exceeded:
            words = _words(self._classes, "rows that both versions accept got another class")
            return Breach(CanaryOutcome.DISAGREEMENT, words)
        return None

    @property
    def mean_entropy_difference_bits(self) -> float:
        """Mean entropy of the candidate's blends less that of the current version's, over all rows."""
        return self._bits / max(1, self._rows)

    def figures(self) -> dict[str, float]:
        """Return everything by name; latencies only where there are any."""
        figures = {
            "requests": self._asked,
            "answered": self._answered,
            "errors": self._errors.events,
            "compared": self._compared,
            "shadow_dropped": self._dropped,
            "rows": self._rows,
            "class_disagreements": self._class_differs,
            "verdict_disagreements": self._verdict_differs,
            "rejected_by_candidate": self._suspicious,
            "rejected_by_current": self._suspicious_to_current,
            "accepted_by_current": self._rejections.trials,
            "accepted_by_current_only": self._rejections.events,
            "accepted_by_both": self._classes.trials,
            "accepted_by_both_class_differs": self._classes.events,
            "max_rejection_rate": self._rejections.limit,
            "mean_entropy_difference_bits": self.mean_entropy_difference_bits,
            "slow_answers": self._slow.events,
            **_latencies("candidate", self._seconds),
            **_latencies("current", self._current_seconds),
        }
        return {name: float(value) for name, value in figures.items()}


def _latencies(who: str, seconds: deque[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {f"{who}_p{round(100 * q)}_seconds": _quantile(seconds, q) for q in (0.5, 0.99)}


def _quantile(seconds: deque[float], quantile: float) -> float:
    return float(np.quantile(np.array(seconds), quantile, method="higher"))


def _words(test: RateTest, what: str) -> str:
    return f"{test.events} of {test.trials} {what}, provably above the {test.limit:.2%} allowed"
