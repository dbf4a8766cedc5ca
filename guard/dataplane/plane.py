"""The life of a request: validate, predict and check, judge, answer.

Failing closed is the default: a row that cannot be checked is refused unless the operator chose
otherwise, and every row that is answered without a check is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import guard
from guard.dataplane.answer import build_answer
from guard.dataplane.intake import Intake
from guard.dataplane.inventory import Inventory
from guard.dataplane.judge import Judge
from guard.dataplane.losses import Losses
from guard.dataplane.model_server import ModelServer
from guard.dataplane.neighbour import Neighbour, pass_on
from guard.dataplane.question import Question, Reply
from guard.dataplane.relay import Relay
from guard.dataplane.reporter import Reporter
from guard.dataplane.served import ServedModel
from guard.dataplane.statistics import Statistics
from guard.dataplane.trial import Trial, require_sound
from guard.dataplane.unread import answer_unread
from guard.detection.threshold import Policy
from guard.errors import DeadlineError, UnknownModelError
from guard.incidents import Witness
from guard.messages import (
    InferRequest,
    InferResponse,
    ModelCounts,
    ModelDescription,
    ModelState,
    Reading,
    ServerDescription,
)
from guard.metrics import Metrics, Outcome, Stage
from guard.runtime.loader import LoadedModel

__all__ = ["DataPlane"]


class DataPlane:
    """Serves the models of a repository, each behind its check.

    Args:
        models: The served models by name.
        metrics: Where everything is counted.
        max_request_rows: Most rows in one request.
        request_timeout_s: Longest a request may take when the caller sets no shorter deadline.
        neighbours: Models that are passed through, by name.
        witnesses: Told of every row that is not simply accepted.
        intake: Reads what callers send; whoever gives one closes it.
        statistics: Where requests are counted by version.
        clock: Tells how long versions take where a candidate is compared with what serves, seconds.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        metrics: Metrics,
        *,
        max_request_rows: int,
        request_timeout_s: float,
        neighbours: Mapping[str, Neighbour] = MappingProxyType({}),
        witnesses: Sequence[Witness] = (),
        intake: Intake | None = None,
        statistics: Statistics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._neighbours = neighbours
        self._metrics = metrics
        self._max_request_rows = max_request_rows
        self._request_timeout_s = request_timeout_s
        self._witnesses = tuple(witnesses)
        self._clock = clock
        self._intake = intake or Intake(max_rows=max_request_rows, on_shed=metrics.shed)
        self._relay = Relay(metrics, max_request_rows, self._witnesses, self._intake)
        self._statistics = statistics or Statistics()
        self._inventory = Inventory(models, neighbours, self._statistics, max_request_rows)
        self._draining = False

    def live(self) -> bool:
        """Whether the process answers at all."""
        return True

    def ready(self) -> bool:
        """Whether every model is loaded and no shutdown has begun."""
        if self._draining or not all(served.ready for served in self._models.values()):
            return False
        return all(neighbour.ready for neighbour in self._neighbours.values())

    def begin_shutdown(self) -> None:
        """Stop reporting ready; requests already accepted are finished."""
        self._draining = True

    def knows(self, name: str) -> bool:
        """Whether a model is here, ready or not."""
        return name in self._models or name in self._neighbours

    def reads(self, name: str) -> Reading:
        """How far the request for a model that came now is looked into; drawn where a model server answers.

        Where the model itself answers, every request is read.
        """
        if name in self._neighbours:
            return Reading.NOTHING
        served = self._models.get(name)
        if served is None or served.upstream is None or served.draws():
            return Reading.TENSORS
        return Reading.NAMES

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether this model, in this version if one is named, is served now."""
        if name in self._neighbours and not self._draining:
            return await self._neighbours[name].version_ready(version)
        served = self._models.get(name)
        if served is None or self._draining or not served.ready:
            return False
        return version in {"", *served.versions}

    def server(self) -> ServerDescription:
        """Describe the server for ServerMetadata."""
        return ServerDescription(
            "inference-guard", guard.__version__, ("model_configuration", "classification", "statistics")
        )

    async def describe(self, name: str, version: str) -> ModelDescription:
        """Describe a model for ModelMetadata and ModelConfig.

        Raises:
            UnknownModelError: If it is not served here.
        """
        if name in self._neighbours:
            return await self._neighbours[name].describe(name, version)
        served = self._find(name, version)
        return self._inventory.describe(name, version, served)

    def index(self) -> Iterable[ModelState]:
        """List every version that is served, or ought to be."""
        return self._inventory.states()

    async def statistics(self, name: str, version: str) -> list[ModelCounts]:
        """Return what was counted of a model's versions; of every model that is ready where none is named.

        Raises:
            UnknownModelError: If it is not served here.
            UnavailableError: If its model server cannot be asked for its own.
        """
        if name and name not in self._neighbours:
            self._find(name, version)
        return await self._inventory.statistics(name, version)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request, checked as the model's policy says.

        A version that is named answers itself. Of the other requests the candidate that is tried, if there is
        one, answers its share, and what it fails on is answered by what serves.

        Raises:
            RequestError: The caller must change the request; :class:`InputRejectedError` where
                a row was found suspicious and the policy is ``enforce``.
            UnavailableError: The caller may retry.
            UpstreamStatusError: The model server behind the guard refused it.
        """
        neighbour = self._neighbours.get(request.model_name)
        if neighbour is not None:
            with self._statistics.request(request, ()) as booking:
                answer = await pass_on(request, neighbour, self._metrics, self._limit_s(request))
                return booking.answer(answer)
        served = self._find(request.model_name, request.model_version)
        with self._statistics.request(request, served.versions) as booking:
            return booking.answer(await self._answer_from(served, request))

    async def _answer_from(self, served: ServedModel, request: InferRequest) -> InferResponse:
        if served.upstream is not None:
            return await self._ask_upstream(request, served, served.upstream)
        trial = served.trial
        if trial is not None and not request.model_version and trial.takes():
            began = time.monotonic()
            answer = await self._try(request, served, trial)
            if answer is not None:
                return answer
            left_s = self._limit_s(request) - (time.monotonic() - began)
            request = replace(request, timeout_s=max(0.0, left_s))
        current = served.slot.current
        by_candidate = current is not None and request.model_version not in {"", current.version}
        with served.slot.lease(candidate=by_candidate) as model:
            return await self._infer_on(model, request, served)

    async def _ask_upstream(
        self, request: InferRequest, served: ServedModel, server: ModelServer
    ) -> InferResponse:
        limit_s = self._limit_s(request)
        if request.unread is None or served.policy is not Policy.MONITOR:
            return await self._relay.infer(request, served, server, limit_s)
        return await answer_unread(
            request, served, server, self._metrics, max_rows=self._max_request_rows, limit_s=limit_s
        )

    async def _infer_on(
        self, model: LoadedModel, request: InferRequest, served: ServedModel
    ) -> InferResponse:
        request = await self._read(request, model, served)
        question = Question.of(request, model, self._max_request_rows)
        if not served.draws():
            question = question.unsampled()
        reporter = self._reporter(question, served)
        began = time.monotonic()
        try:
            reply = await self._ask(question, served, self._limit_s(request))
        except BaseException as error:
            Losses(question, self._metrics, reporter).lost(error, time.monotonic() - began)
            raise
        if served.trial is not None and model is served.slot.current:
            served.trial.current_answered(reply.seconds)
        return self._answer(question, reply, served, reporter)

    async def _try(self, request: InferRequest, served: ServedModel, trial: Trial) -> InferResponse | None:
        """Return the candidate's answer; None where it failed, of which nothing but the trial is told."""
        with served.slot.lease(candidate=True) as model:
            request = await self._read(request, model, served)
            question = Question.of(request, model, self._max_request_rows)
            reporter = self._reporter(question, served)
            began, limit_s = time.monotonic(), self._limit_s(request) / 2
            try:
                reply = await self._ask(question, served, limit_s)
                require_sound(question, reply)
            except asyncio.CancelledError as error:
                Losses(question, self._metrics, reporter).lost(error, time.monotonic() - began)
                raise
            except Exception as error:  # noqa: BLE001 - whatever a candidate does, the caller gets an answer
                if isinstance(error, DeadlineError) and limit_s < self._request_timeout_s / 2:
                    trial.late(error, limit_s)
                else:
                    trial.failed(question, error)
                return None
            trial.answered(question, reply)
            return self._answer(question, reply, served, reporter)

    async def _read(self, request: InferRequest, model: LoadedModel, served: ServedModel) -> InferRequest:
        """Return the request with the model's own tensor; decoding takes off the time that it has."""
        source, accepts = model.profile.input, served.accepts(model.profile)
        return await self._intake.read(request, source, accepts, self._limit_s(request))

    async def _ask(self, question: Question, served: ServedModel, limit_s: float) -> Reply:
        if served.outcome_of_uncheckable is Outcome.REFUSED:
            question.require_checkable()
        first = served.policy is Policy.MONITOR and question.sampled
        return await question.put(limit_s, self._clock, answer_first=first)

    def _answer(
        self, question: Question, reply: Reply, served: ServedModel, reporter: Reporter
    ) -> InferResponse:
        request, model = question.request, question.model
        times = self._time(model, reply)
        judge = Judge(request, served, model, self._metrics, question.unfit, reply.logits, reporter)
        if reply.rows is None:
            reply.submission.rows.add_done_callback(judge.record_later)
        findings = None if reply.rows is None else judge.judge(reply.rows)
        self._statistics.computed(model.name, model.version, *times)
        return build_answer(request, model.version, model.profile.output, reply.logits, findings)

    def _reporter(self, question: Question, served: ServedModel) -> Reporter:
        return Reporter(question.request, question.model, served.policy, question.images, self._witnesses)

    def _find(self, name: str, version: str) -> ServedModel:
        served = self._models.get(name)
        if served is None or served.slot.current is None:
            names = sorted({*self._models, *self._neighbours})
            raise UnknownModelError(f"model {name!r} is not served here; loaded: {names}")
        versions = served.versions
        known = versions or served.upstream is None  # a model server that never was ready has none yet
        if known and version not in {"", *versions}:
            raise UnknownModelError(
                f"version {version!r} of model {name!r} is not served here; loaded: "
                f"{', '.join(map(repr, versions))}"
            )
        return served

    def _limit_s(self, request: InferRequest) -> float:
        """Return the seconds that a request may take."""
        callers_s = request.timeout_s
        return self._request_timeout_s if callers_s is None else min(self._request_timeout_s, callers_s)

    def _time(self, model: LoadedModel, reply: Reply) -> tuple[float, float]:
        """Return how long a request waited and how long it was worked on, seconds, counted."""
        now, submission = time.monotonic(), reply.submission
        started = submission.started or now
        self._metrics.stage(model.name, Stage.QUEUE, started - submission.submitted)
        self._metrics.stage(model.name, Stage.TOTAL, now - submission.submitted)
        return started - submission.submitted, now - started
