"""Requests whose prediction comes from a model server, while the check is made here.

Theory of operation. The request goes to the model server as it came, and its rows go into the line of the
check at the same moment, so that a request takes as long as the slower of the two and not as long as both.
Under ``enforce`` the answer is let out only once every row is accepted: where one is not, or the check fails,
the server's answer is dropped, or not waited for. What cannot be checked is not sent there at all, unless the
operator chose ``on_uncheckable = "answer"``. Under ``monitor`` the answer leaves as soon as it is there.

::

    request ─┬─► line of the check ──► verdicts ─ accepted ─┐
             └─► model server ───────► its answer ──────────┴─► answer + guard_*
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from guard.dataplane.answer import Finding, add_findings
from guard.dataplane.intake import Intake
from guard.dataplane.judge import Judge
from guard.dataplane.losses import Losses
from guard.dataplane.model_server import ModelServer
from guard.dataplane.question import Question
from guard.dataplane.reporter import Reporter
from guard.dataplane.served import ServedModel
from guard.detection.base import Decision
from guard.detection.threshold import Policy
from guard.errors import (
    CheckFailedError,
    DeadlineError,
    QueueFullError,
    UnsupportedRequestError,
    UpstreamDeadlineError,
)
from guard.incidents import Witness
from guard.messages import InferRequest, InferResponse, Relayed
from guard.metrics import Metrics, Outcome, Stage
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel
from guard.runtime.submission import Submission

__all__ = ["Relay", "require_understood"]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Relay:
    """Asks a model server and checks what it is asked.

    Attributes:
        max_request_rows: Most rows in one request.
        witnesses: Told of every row that is not simply accepted.
        intake: Reads what callers send.
    """

    metrics: Metrics
    max_request_rows: int
    witnesses: Sequence[Witness]
    intake: Intake

    async def infer(
        self, request: InferRequest, served: ServedModel, server: ModelServer, limit_s: float
    ) -> InferResponse:
        """Answer a request from the model server, checked as the model's policy says.

        Raises:
            RequestError: The caller must change the request.
            UnavailableError: The caller may retry.
            UpstreamStatusError: The model server refused it.
        """
        require_understood(request)
        ends = time.monotonic() + limit_s
        while True:  # once, unless another version takes over while the server cannot be asked
            with served.slot.lease() as model:
                exchange = await self._exchange(request, model, served, server, ends)
                if await exchange.admitted(ends):
                    with server.under_way():
                        monitored = served.policy is Policy.MONITOR
                        return await (exchange.answered_first(ends) if monitored else exchange.checked(ends))

    async def _exchange(
        self,
        request: InferRequest,
        model: LoadedModel,
        served: ServedModel,
        server: ModelServer,
        ends: float,
    ) -> _Exchange:
        plain = replace(request, outputs=())  # which outputs there are is the server's to say
        limit_s = ends - time.monotonic()
        read = await self.intake.read(plain, model.profile.input, served.accepts(model.profile), limit_s)
        question = replace(Question.of(read, model, self.max_request_rows), request=request)
        reporter = Reporter(request, model, served.policy, question.images, self.witnesses)
        return _Exchange(question, served, server, self.metrics, reporter, limit_s)


def require_understood(request: InferRequest) -> None:
    """Refuse what the model server may take otherwise than the guard does.

    Raises:
        UnsupportedRequestError: If the message has fields that the guard does not know.
    """
    if request.original is None or not request.original.understood:
        raise UnsupportedRequestError(
            "the message has fields that the guard does not know, so that the model server may be asked for "
            "something else than what is checked; send the fields of the protocol alone"
        )


@dataclass(frozen=True)
class _Exchange:
    """One request, its check, and the call to the model server."""

    question: Question
    served: ServedModel
    server: ModelServer
    metrics: Metrics
    reporter: Reporter
    limit_s: float

    async def admitted(self, ends: float) -> bool:
        """Wait for the server before anything is begun, a check that it makes included."""
        with self._books():
            if self.served.outcome_of_uncheckable is Outcome.REFUSED:
                self.question.require_checkable()
            return await self.server.until_ready(self.question.model, ends - time.monotonic())

    async def checked(self, ends: float) -> InferResponse:
        """Let the answer out once the check allows it."""
        with self._books():
            submission = self._submit(answer_first=False)
        call = self._call(ends)
        try:
            with self._books():
                rows = await _within(ends, self._rows(submission, call), partial(self._late, call))
            findings = self._judge(submission).judge(rows)
            with self._books():
                relayed = await _within(ends, asyncio.shield(call), partial(self._late, call))
        finally:
            call.cancel()
            self.question.model.scheduler.discard(submission)
        self._time(submission)
        return self._answer(relayed, findings)

    async def answered_first(self, ends: float) -> InferResponse:
        """Answer at once, and check after (policy ``monitor``, which refuses nothing)."""
        submission: Submission | None = None
        with self._books():
            with suppress(QueueFullError):  # then it is answered unchecked, and counted
                submission = self._submit(answer_first=True)
            call = self._call(ends)
            try:
                relayed = await _within(ends, asyncio.shield(call), partial(self._late, call))
            except BaseException:
                call.cancel()
                if submission is not None:
                    self.question.model.scheduler.discard(submission)
                raise
        if submission is None:
            unchecked = [Row(wanted=False) for _ in self.question.images]
            return self._answer(relayed, self._judge(None).judge(unchecked))
        submission.rows.add_done_callback(partial(self._judge_later, submission))
        self._time(submission)
        return self._answer(relayed, None)

    def _submit(self, *, answer_first: bool) -> Submission:
        question = self.question
        return question.model.scheduler.submit(
            question.images, question.to_check, answer_first=answer_first, client=question.request.client
        )

    def _call(self, ends: float) -> asyncio.Task[Relayed]:
        question = self.question
        infer = self.server.infer(question.request, question.model, ends - time.monotonic())
        call = asyncio.ensure_future(infer)
        call.add_done_callback(_seen)
        return call

    async def _rows(self, submission: Submission, call: asyncio.Task[Relayed]) -> list[Row]:
        """Return what the check found, unless the server fails before; then nobody needs the check."""
        waited: set[asyncio.Future[Any]] = {call, submission.rows}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not submission.rows.done() and call.exception() is not None:
            call.result()
        try:
            return await submission.rows
        except CheckFailedError:
            if self.served.outcome_of_uncheckable is Outcome.REFUSED:
                raise
            return [
                replace(row, decision=Decision.FAILED) if row.wanted else row for row in submission.task.rows
            ]

    def _judge(self, submission: Submission | None) -> Judge:
        question, logits = self.question, None
        prediction = submission.prediction if submission is not None else None
        if prediction is not None and prediction.done() and not prediction.cancelled():
            logits = None if prediction.exception() else prediction.result()
        return Judge(
            question.request, self.served, question.model, self.metrics, question.unfit, logits, self.reporter
        )

    def _judge_later(self, submission: Submission, rows: asyncio.Future[list[Row]]) -> None:
        if not rows.cancelled():
            self._judge(submission).record_later(rows)

    def _answer(self, relayed: Relayed, findings: list[Finding] | None) -> InferResponse:
        return add_findings(self.question.request, relayed, findings, len(self.question.images))

    @contextmanager
    def _books(self) -> Iterator[None]:
        """Count a request that is lost."""
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            Losses(self.question, self.metrics, self.reporter).lost(error, time.monotonic() - began)
            raise

    def _late(self, call: asyncio.Task[Relayed]) -> DeadlineError:
        """Return what the caller is told whose time is up: who was waited for."""
        name = self.question.model.name
        late = f"than the {self.limit_s:.3f} s that the request has; allow more time, send fewer rows"
        if not call.done():
            return UpstreamDeadlineError(f"the model server of model {name!r} took longer {late}")
        return DeadlineError(f"the check of model {name!r} took longer {late}, or add capacity")

    def _time(self, submission: Submission) -> None:
        now = time.monotonic()
        started = submission.started or now
        name = self.question.model.name
        self.metrics.stage(name, Stage.QUEUE, started - submission.submitted)
        self.metrics.stage(name, Stage.TOTAL, now - submission.submitted)


async def _within(ends: float, awaited: Awaitable[_Value], late: Callable[[], Exception]) -> _Value:
    """Return what is awaited, if it is there at ``ends``, seconds of the monotonic clock; else raise."""
    try:
        async with asyncio.timeout(ends - time.monotonic()):
            return await awaited
    except TimeoutError:
        raise late() from None


def _seen(call: asyncio.Task[Relayed]) -> None:
    if not call.cancelled():
        call.exception()  # whoever awaits it gets it; nobody is warned where the check had the last word
