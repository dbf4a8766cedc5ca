"""The life of a request: validate, predict and check, judge, answer.

Failing closed is the default: a row that cannot be checked is refused unless the operator chose
otherwise, and every row that is answered without a check is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import guard
from guard.arrays import Logits
from guard.dataplane.answer import build_answer
from guard.dataplane.judge import Judge
from guard.dataplane.reporter import Reporter
from guard.dataplane.served import ServedModel
from guard.dataplane.validation import accepted_images, uncheckable_rows
from guard.detection.threshold import Policy, Verdict
from guard.errors import (
    CheckFailedError,
    DeadlineError,
    QueueFullError,
    ShuttingDownError,
    UncheckableInputError,
    UnknownModelError,
)
from guard.incidents import Witness
from guard.messages import InferRequest, InferResponse, ModelDescription, ServerDescription, TensorSpec
from guard.metrics import Metrics, Outcome, ShedReason, Stage, UncheckableReason
from guard.runtime.loader import LoadedModel
from guard.runtime.rounds import Row
from guard.runtime.submission import Submission

__all__ = ["DataPlane"]

_GRACE_S: Final = 0.1  # a caller's clock started before ours


class DataPlane:
    """Serves the models of a repository, each behind its check.

    Args:
        models: The served models by name.
        metrics: Where everything is counted.
        max_request_rows: Most rows in one request.
        request_timeout_s: Longest a request may take when the caller sets no shorter deadline.
        witnesses: Told of every row that is not simply accepted.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        metrics: Metrics,
        *,
        max_request_rows: int,
        request_timeout_s: float,
        witnesses: Sequence[Witness] = (),
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._max_request_rows = max_request_rows
        self._request_timeout_s = request_timeout_s
        self._witnesses = tuple(witnesses)
        self._draining = False

    def live(self) -> bool:
        """Whether the process answers at all."""
        return True

    def ready(self) -> bool:
        """Whether every model is loaded and no shutdown has begun."""
        return not self._draining and all(served.slot.current is not None for served in self._models.values())

    def begin_shutdown(self) -> None:
        """Stop reporting ready; requests already accepted are finished."""
        self._draining = True

    def model_ready(self, name: str, version: str) -> bool:
        """Whether this model, in this version if one is named, is served now."""
        served = self._models.get(name)
        current = served.slot.current if served and not self._draining else None
        return current is not None and version in {"", current.version}

    def server(self) -> ServerDescription:
        """Describe the server for ServerMetadata."""
        return ServerDescription("inference-guard", guard.__version__, ("model_configuration",))

    def describe(self, name: str, version: str) -> ModelDescription:
        """Describe a model for ModelMetadata and ModelConfig.

        Raises:
            UnknownModelError: If it is not served here.
        """
        with self._find(name, version).slot.lease() as model:
            source, sink = model.profile.input, model.profile.output
            return ModelDescription(
                name=name,
                versions=(model.version,),
                platform="onnxruntime_onnx",
                backend="onnxruntime",
                max_batch_size=self._max_request_rows,
                inputs=(TensorSpec(source.name, source.datatype, (-1, *source.shape)),),
                outputs=(TensorSpec(sink.name, sink.datatype, (-1, sink.classes)),),
            )

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request, checked as the model's policy says.

        Raises:
            RequestError: The caller must change the request; :class:`InputRejectedError` where
                a row was found suspicious and the policy is ``enforce``.
            UnavailableError: The caller may retry.
        """
        served = self._find(request.model_name, request.model_version)
        with served.slot.lease() as model:
            images = accepted_images(request, model.profile, self._max_request_rows)
            to_check, reasons = uncheckable_rows(images, model.profile.input)
            reporter = Reporter(request, model, served.policy, images, self._witnesses)
            unfit = {row: reason for row, (reason, _) in reasons.items()}
            if reasons and served.outcome_of_uncheckable is Outcome.REFUSED:
                reporter.unchecked(unfit)
                self._refuse_uncheckable(request, reasons)
            monitor = served.policy is Policy.MONITOR
            submission = self._submit(
                model, partial(model.scheduler.submit, images, to_check, answer_first=monitor)
            )
            try:
                logits, rows = await self._await(request, model, submission, answer_first=monitor)
            except CheckFailedError:
                reporter.unchecked(dict.fromkeys(range(len(images)), UncheckableReason.CHECK_FAILED))
                raise
            judge = Judge(request, served, model, self._metrics, unfit, logits, reporter)
            if rows is None:
                submission.rows.add_done_callback(judge.record_later)
            findings = None if rows is None else judge.judge(rows)
            return build_answer(request, model.version, model.profile.output, logits, findings)

    def _find(self, name: str, version: str) -> ServedModel:
        served = self._models.get(name)
        current = served.slot.current if served else None
        if served is None or current is None:
            raise UnknownModelError(f"model {name!r} is not served here; loaded: {sorted(self._models)}")
        if version not in {"", current.version}:
            raise UnknownModelError(
                f"version {version!r} of model {name!r} is not served here; loaded: {current.version!r}"
            )
        return served

    def _refuse_uncheckable(
        self, request: InferRequest, reasons: Mapping[int, tuple[UncheckableReason, str]]
    ) -> None:
        for reason, _ in reasons.values():
            self._count_refused(request.model_name, reason, 1)
        row, (_, why) = next(iter(reasons.items()))
        raise UncheckableInputError(
            f"row {row} of input {request.inputs[0].name!r} {why}, so it cannot be checked for a trigger "
            f"({len(reasons)} such rows); send finite images preprocessed as at calibration"
        )

    def _count_refused(self, model: str, reason: UncheckableReason, rows: int) -> None:
        self._metrics.uncheckable(model, reason, Outcome.REFUSED, rows)
        self._metrics.verdicts(model, Verdict.UNCHECKED, rows)

    def _submit(self, model: LoadedModel, submit: partial[Submission]) -> Submission:
        try:
            return submit()
        except QueueFullError:
            self._metrics.shed(model.name, ShedReason.QUEUE_FULL)
            raise
        except ShuttingDownError:
            self._metrics.shed(model.name, ShedReason.SHUTTING_DOWN)
            raise

    async def _await(
        self, request: InferRequest, model: LoadedModel, submission: Submission, *, answer_first: bool
    ) -> tuple[Logits, list[Row] | None]:
        limit_s = _shorter(self._request_timeout_s, request.timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                logits = await submission.prediction
                rows = None if answer_first else await submission.rows
        except TimeoutError as error:
            self._give_up(model, submission, ShedReason.DEADLINE)
            raise DeadlineError(
                f"model {request.model_name!r} did not answer within {limit_s:.3f} s; allow more time, "
                f"send fewer rows, or add capacity"
            ) from error
        except asyncio.CancelledError:
            self._give_up(model, submission, _why_cancelled(request, submission))
            raise
        except CheckFailedError:
            self._count_refused(model.name, UncheckableReason.CHECK_FAILED, len(submission.task.rows))
            raise
        except ShuttingDownError:
            self._metrics.shed(model.name, ShedReason.SHUTTING_DOWN)
            raise
        self._time(model, submission)
        return logits, rows

    def _give_up(self, model: LoadedModel, submission: Submission, reason: ShedReason) -> None:
        model.scheduler.discard(submission)
        self._metrics.shed(model.name, reason)

    def _time(self, model: LoadedModel, submission: Submission) -> None:
        now = time.monotonic()
        started = submission.started or now
        self._metrics.stage(model.name, Stage.QUEUE, started - submission.submitted)
        self._metrics.stage(model.name, Stage.TOTAL, now - submission.submitted)


def _shorter(ours_s: float, callers_s: float | None) -> float:
    return ours_s if callers_s is None else min(ours_s, callers_s)


def _why_cancelled(request: InferRequest, submission: Submission) -> ShedReason:
    """Return whether the caller hung up or ran out of time, after which the work is cancelled too."""
    waited_s = time.monotonic() - submission.submitted
    late = request.timeout_s is not None and waited_s >= request.timeout_s - _GRACE_S
    return ShedReason.DEADLINE if late else ShedReason.CANCELLED
