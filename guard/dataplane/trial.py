"""A candidate on a share of the requests, and the current version asked the same in the background.

Theory of operation. Of the requests that name no version a share is put to the candidate first. Where it
fails, the caller gets the current version's answer and the watcher is told; the candidate has half of the
time that the request has, so that the other half is left. What is the caller's doing (an input that neither
version can check, a deadline too short for anybody) is not held against it. Once it has answered and checked,
the same rows are put to the current version as a *shadow*, for which nobody waits: it runs while nothing else
is in the line, is given up where the line overflows, and not even begun while the line is a quarter full. So
the traffic comes first, always; it waits for one device call of a shadow at most. What could not be compared
is counted.

::

    request ─► share? ─► candidate ──► answer                       failed ─► current version ─► answer
                             └─ checked ─► shadow on the current version ─► watcher.compared
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, runtime_checkable

import numpy as np

from guard.dataplane.question import Question, Reply
from guard.dataplane.share import Share
from guard.dataplane.validation import uncheckable_rows
from guard.detection.base import Decision
from guard.errors import CheckFailedError, DeadlineError, UnavailableError, UncheckableInputError
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel
from guard.runtime.slot import ModelSlot
from guard.runtime.submission import Submission

__all__ = ["Pair", "Seen", "Trial", "Watcher", "require_sound"]

_SHADOWS_SHARE: Final = 4  # shadows begin while no more than this part of the line is taken


@dataclass(frozen=True)
class Seen:
    """What one version makes of a row.

    Attributes:
        label: Class with the highest score.
        suspicious: Whether the check found a trigger.
        mean_bits: Mean entropy of the blends spent on it.
    """

    label: int
    suspicious: bool
    mean_bits: float


@dataclass(frozen=True)
class Pair:
    """What both versions make of the same row."""

    candidate: Seen
    current: Seen


@runtime_checkable
class Watcher(Protocol):
    """Told how the candidate does; on the event loop, so it does not block."""

    def asked(self) -> None:
        """A request was put to the candidate."""
        ...

    def answered(self, seconds: float) -> None:
        """It answered one."""
        ...

    def failed(self, error: Exception) -> None:
        """It failed on one, and that was not the caller's fault."""
        ...

    def late(self, error: Exception, allowed_s: float) -> None:
        """It did not answer one in the seconds that the caller's own deadline left it."""
        ...

    def current_answered(self, seconds: float) -> None:
        """The current version answered a request."""
        ...

    def compared(self, pairs: Sequence[Pair]) -> None:
        """Both looked at the rows of a request."""
        ...

    def dropped(self) -> None:
        """A request could not be compared, as the current version had better things to do."""
        ...


class Trial:
    """A candidate that is tried.

    Args:
        slot: Holds the current version and the candidate.
        share: Picks the requests.
        watcher: Told of everything.
    """

    def __init__(self, slot: ModelSlot[LoadedModel], share: Share, watcher: Watcher) -> None:
        self._slot = slot
        self._share = share
        self._watcher = watcher
        self._shadows: dict[Submission, LoadedModel] = {}
        self._over = False

    def takes(self) -> bool:
        """Return whether the next request that names no version goes to the candidate."""
        taken = self._share.takes()
        if taken:
            self._watcher.asked()
        return taken

    def answered(self, question: Question, reply: Reply) -> None:
        """Note an answer of the candidate, and compare it once its check is done."""
        self._watcher.answered(reply.seconds)
        reply.submission.rows.add_done_callback(partial(self._checked, question, reply))

    def failed(self, question: Question, error: Exception) -> None:
        """Note that the candidate gave no answer, unless the current version cannot check it either."""
        current = self._slot.current
        if isinstance(error, UncheckableInputError | CheckFailedError) and current is not None:
            fit, _ = uncheckable_rows(question.images, current.profile.input)
            if not fit.all():
                return
        self._watcher.failed(error)

    def late(self, error: DeadlineError, allowed_s: float) -> None:
        """Note that the candidate gave no answer in the seconds that the caller's deadline left it."""
        self._watcher.late(error, allowed_s)

    def current_answered(self, seconds: float) -> None:
        """Note the time that the current version took for a request of its own."""
        self._watcher.current_answered(seconds)

    def end(self) -> None:
        """Compare nothing any more, and give up what is under way of it."""
        self._over = True
        shadows, self._shadows = self._shadows, {}
        for submission, model in shadows.items():
            model.scheduler.discard(submission)

    def _checked(self, question: Question, reply: Reply, rows: asyncio.Future[list[Row]]) -> None:
        if self._over or rows.cancelled():
            return
        error = rows.exception()
        if isinstance(error, CheckFailedError) or (error is None and _any_failed(rows.result())):
            self._watcher.failed(error if isinstance(error, Exception) else _check_failed(question))
        elif error is None and any(row.decision is not None for row in rows.result()):
            self._shadow(question, reply.logits, rows.result())
        else:
            self._watcher.dropped()

    def _shadow(self, question: Question, logits: np.ndarray, rows: list[Row]) -> None:
        current = self._slot.current
        if current is None:
            return
        line, images = current.scheduler, question.images
        if line.rows + len(images) > line.max_queue_rows // _SHADOWS_SHARE:
            self._watcher.dropped()
            return
        fit, _ = uncheckable_rows(images, current.profile.input)
        try:
            submission = line.submit(images, fit, background=True)
        except UnavailableError:
            self._watcher.dropped()
            return
        self._shadows[submission] = current
        submission.rows.add_done_callback(partial(self._compare, submission, logits, rows))

    def _compare(
        self, submission: Submission, logits: np.ndarray, rows: list[Row], theirs: asyncio.Future[list[Row]]
    ) -> None:
        self._shadows.pop(submission, None)
        if self._over or theirs.cancelled():
            return
        pairs: list[Pair] = []
        if theirs.exception() is None and submission.prediction.done():
            pairs = _pairs(logits, rows, submission.prediction.result(), theirs.result())
        if pairs:
            self._watcher.compared(pairs)
        else:
            self._watcher.dropped()


def require_sound(question: Question, reply: Reply) -> None:
    """Ask more of a candidate than of what serves: what it cannot check, or answer, is not its to answer.

    Raises:
        CheckFailedError: If a score is not finite, or a check gave no finite entropy.
    """
    if not np.isfinite(reply.logits).all() or _any_failed(reply.rows or []):
        raise _check_failed(question)


def _any_failed(rows: Sequence[Row]) -> bool:
    return any(row.decision is Decision.FAILED for row in rows)


def _check_failed(question: Question) -> CheckFailedError:
    model = question.model
    return CheckFailedError(
        f"version {model.version!r} of model {model.name!r} gave a score or an entropy that is not finite; "
        f"repair or calibrate it again"
    )


def _pairs(
    logits: np.ndarray, rows: Sequence[Row], their_logits: np.ndarray, their_rows: Sequence[Row]
) -> list[Pair]:
    ours, theirs = _seen(logits, rows), _seen(their_logits, their_rows)
    return [Pair(one, other) for one, other in zip(ours, theirs, strict=True) if one and other]


def _seen(logits: np.ndarray, rows: Sequence[Row]) -> list[Seen | None]:
    """Return what was made of each row; None where it was not checked to the end."""
    suspicious = (Decision.DOUBTFUL, Decision.SUSPICIOUS)
    return [
        Seen(
            label=int(scores.argmax()),
            suspicious=row.decision in suspicious,
            mean_bits=row.evidence.entropy_sum / row.evidence.passes,
        )
        if row.decision is Decision.CLEAN or row.decision in suspicious
        else None
        for scores, row in zip(logits, rows, strict=True)
    ]
