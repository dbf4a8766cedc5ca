"""Counts and tells what became of a request that was not answered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from guard.dataplane.question import Question
from guard.dataplane.reporter import Reporter
from guard.detection.threshold import Verdict
from guard.errors import (
    CheckFailedError,
    DeadlineError,
    QueueFullError,
    ShuttingDownError,
    UncheckableInputError,
)
from guard.metrics import Metrics, Outcome, ShedReason, UncheckableReason

__all__ = ["Losses"]

_GRACE_S: Final = 0.1  # a caller's clock started before ours

_SHED: Final = (
    (QueueFullError, ShedReason.QUEUE_FULL),
    (ShuttingDownError, ShedReason.SHUTTING_DOWN),
    (DeadlineError, ShedReason.DEADLINE),
)


@dataclass(frozen=True)
class Losses:
    """Keeps the books of one request, should it be lost."""

    question: Question
    metrics: Metrics
    reporter: Reporter

    def lost(self, error: BaseException, waited_s: float) -> None:
        """Record why there is no answer.

        Args:
            error: What :meth:`~guard.dataplane.question.Question.put` or ``require_checkable`` raised.
            waited_s: Seconds since the question was put.
        """
        model = self.question.model.name
        if isinstance(error, UncheckableInputError):
            self._refused(self.question.unfit)
        elif isinstance(error, CheckFailedError):
            rows = range(len(self.question.images))
            self._refused(dict.fromkeys(rows, UncheckableReason.CHECK_FAILED))
        elif isinstance(error, asyncio.CancelledError):
            self.metrics.shed(model, self._why_cancelled(waited_s))
        for kind, reason in _SHED:
            if isinstance(error, kind):
                self.metrics.shed(model, reason)

    def _refused(self, reasons: dict[int, UncheckableReason]) -> None:
        model = self.question.model.name
        for reason in reasons.values():
            self.metrics.uncheckable(model, reason, Outcome.REFUSED, 1)
            self.metrics.verdicts(model, Verdict.UNCHECKED, 1)
        self.reporter.unchecked(reasons)

    def _why_cancelled(self, waited_s: float) -> ShedReason:
        """Return whether the caller hung up or ran out of time, after which the work is cancelled too."""
        limit_s = self.question.request.timeout_s
        late = limit_s is not None and waited_s >= limit_s - _GRACE_S
        return ShedReason.DEADLINE if late else ShedReason.CANCELLED
