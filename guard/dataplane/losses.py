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

__all__ = ["Losses", "shed_reason"]

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
        reason = shed_reason(error, self.question.request.timeout_s, waited_s)
        if reason is not None:
            self.metrics.shed(model, reason)

    def _refused(self, reasons: dict[int, UncheckableReason]) -> None:
        model = self.question.model.name
        for reason in reasons.values():
            self.metrics.uncheckable(model, reason, Outcome.REFUSED, 1)
            self.metrics.verdicts(model, Verdict.UNCHECKED, 1)
        self.reporter.unchecked(reasons)


def shed_reason(error: BaseException, limit_s: float | None, waited_s: float) -> ShedReason | None:
    """Return why a request was dropped; None where the error does not say that it was.

    Args:
        error: What it ended with. Whoever hangs up and whoever runs out of time both cancel it.
        limit_s: Seconds that its caller gave it; None for no end.
        waited_s: Seconds that it took.
    """
    if isinstance(error, asyncio.CancelledError):
        late = limit_s is not None and waited_s >= limit_s - _GRACE_S
        return ShedReason.DEADLINE if late else ShedReason.CANCELLED
    return next((reason for kind, reason in _SHED if isinstance(error, kind)), None)
