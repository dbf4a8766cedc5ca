"""What an operator may ask of all workers together."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from guard.control.api import CanaryStatus, ModelStatus, SwapReport
from guard.control.watcher import ACTOR
from guard.errors import BusyError, GuardError, OperationError, ShuttingDownError, WorkerError
from guard.rpc.pb import guard_admin_pb2 as admin
from guard.rpc.pb import guard_worker_pb2 as pb
from guard.workers.change import Result, change_all
from guard.workers.crew import Crew
from guard.workers.lifeline import CANARY_ENDED, NEWER
from guard.workers.statuses import one_canary, one_report, one_status
from guard.workers.worker import Worker

__all__ = ["CrewControl"]

_log = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5

_Answer = TypeVar("_Answer")


class CrewControl:
    """The operations behind :class:`~guard.control.api.Control`, over all workers.

    A change is made by all workers or by none, see :mod:`guard.workers.change`, and only while all of them
    serve. A candidate that one takes off its traffic is taken off everybody's.

    Attributes:
        crew: The workers; to be set before anything is asked.
    """

    crew: Crew

    def __init__(self) -> None:
        self._canaries: dict[str, tuple[str, float]] = {}
        self._endings: Counter[str] = Counter()  # candidates that exceeded a limit, by model
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what is known of one model, or of all; soon, even where a worker does not answer."""
        workers = self.crew.serving
        answers = await asyncio.gather(*(worker.status(model) for worker in workers), return_exceptions=True)
        said = {
            worker.name: answer
            for worker, answer in zip(workers, answers, strict=True)
            if not isinstance(answer, BaseException)
        }
        if not said:
            raise next((each for each in answers if isinstance(each, GuardError)), self._nobody())
        away = [worker.name for worker in self.crew.workers if worker.name not in said]
        return tuple(_noting(away, each) for each in _by_model(said))

    async def swap(self, model: str, version: str = "", *, digest: str = "", actor: str = "") -> SwapReport:
        """Serve a version, the highest one if none is named; only with the given digest, if one is given."""
        swap = admin.SwapRequest(model=model, version=version, digest=digest)
        return await self._switch(pb.ChangeStep(actor=actor, swap=swap))

    async def rollback(self, model: str, *, actor: str = "") -> SwapReport:
        """Serve the version that was served before."""
        return await self._switch(pb.ChangeStep(actor=actor, rollback=admin.RollbackRequest(model=model)))

    async def start_canary(self, model: str, version: str, *, share: float, actor: str = "") -> CanaryStatus:
        """Let a candidate answer a share of the requests, and watch it in every worker."""
        start = admin.StartCanaryRequest(model=model, version=version, share=share)
        return await self._to_the_end(self._start_canary(pb.ChangeStep(actor=actor, start_canary=start)))

    async def promote(self, model: str, *, actor: str = "") -> SwapReport:
        """Serve the candidate that is being tried."""
        report = await self._switch(pb.ChangeStep(actor=actor, promote=admin.PromoteRequest(model=model)))
        self._canaries.pop(model, None)
        return report

    async def stop_canary(self, model: str, *, actor: str = "") -> CanaryStatus:
        """Take the candidate off the traffic of all."""
        return await self._to_the_end(self._stop_canary(model))

    async def joins(self, worker: Worker) -> None:
        """Have a worker that was started again try what the others try.

        Raises:
            GuardError: If it cannot, or they try something else meanwhile.
        """
        tried = dict(self._canaries)
        for model, (version, share) in tried.items():
            start = admin.StartCanaryRequest(model=model, version=version, share=share)
            await change_all([worker], pb.ChangeStep(actor="start", start_canary=start))
        if tried != self._canaries:
            raise WorkerError("a candidate came or went while it started; it is started again")

    def said(self, worker: Worker, kind: str, fields: Mapping[str, Any]) -> None:
        """Take note of what a worker says that concerns all."""
        if self._closing:
            return
        if kind == CANARY_ENDED:
            self._endings[fields["model"]] += 1
            if self._canaries.pop(fields["model"], None) is not None:
                self._begin(self._follow(fields["model"], worker))
        elif kind == NEWER:
            self._begin(self._watched(fields["model"], fields["version"]))

    async def close(self) -> None:
        """Give up what is under way; what has not been agreed to by all is made by none."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _start_canary(self, step: pb.ChangeStep) -> CanaryStatus:
        start, endings = step.start_canary, self._endings[step.start_canary.model]
        canaries = [each for each in await self._change(step) if isinstance(each, CanaryStatus)]
        if self._endings[start.model] == endings:
            self._canaries[start.model] = (start.version, start.share)
        else:  # it exceeded a limit in one worker before the last one had begun
            await self._follow(start.model)
        return one_canary(canaries)

    async def _stop_canary(self, model: str) -> CanaryStatus:
        tried, endings = self._canaries.pop(model, None), self._endings[model]
        parts = [worker.stop_canary(model) for worker in self.crew.serving]
        answers = await asyncio.gather(*parts, return_exceptions=True)
        stopped = [answer for answer in answers if isinstance(answer, CanaryStatus)]
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if any(map(_says_nothing_of_it, errors)):
            if stopped or self._endings[model] != endings:
                self._begin(self._follow(model))  # it goes on in some
            elif tried is not None:
                self._canaries.setdefault(model, tried)  # nobody has stopped it
        if not stopped:
            raise next(iter(errors), self._nobody())
        for error in errors:
            if not isinstance(error, OperationError):
                raise error
        return one_canary(stopped)

    async def _follow(self, model: str, worker: Worker | None = None) -> None:
        """Take a candidate off the traffic of all but one worker, in which it exceeded a limit."""
        await asyncio.gather(*(_take_off(other, model) for other in self.crew.serving if other is not worker))

    async def _watched(self, model: str, version: str) -> None:
        try:
            await self.swap(model, version, actor=ACTOR)
        except GuardError as error:  # told by the worker in which it failed, and tried again by the watcher
            _log.debug("a version was not taken over", extra={"model": model, "why": str(error)})

    async def _switch(self, step: pb.ChangeStep) -> SwapReport:
        results = await self._to_the_end(self._change(step))
        return one_report([result for result in results if isinstance(result, SwapReport)])

    async def _change(self, step: pb.ChangeStep) -> list[Result]:
        missing = [worker.name for worker in self.crew.workers if not worker.serves]
        if missing:
            raise WorkerError(f"{', '.join(missing)} is being started again; try again in a while")
        return await change_all(self.crew.workers, step)

    async def _to_the_end(self, operation: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Run an operation to its end, even if whoever asked for it is gone before."""
        return await asyncio.shield(self._begin(operation))

    def _begin(self, operation: Coroutine[Any, Any, _Answer]) -> asyncio.Task[_Answer]:
        if self._closing:
            operation.close()
            raise ShuttingDownError("the guard is stopping; ask another replica")
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though nobody may wait for it any more

    def _nobody(self) -> WorkerError:
        return WorkerError("no worker serves just now; they are started again: see the log")


async def _take_off(worker: Worker, model: str) -> None:
    """Have a worker stop its candidate, however long that takes; one that ends comes back without it."""
    process = worker.process
    while worker.serves and worker.process is process:
        try:
            await worker.stop_canary(model)
        except GuardError as error:
            if not _says_nothing_of_it(error):
                return  # it has none
            await asyncio.sleep(_AGAIN_S)
        else:
            return


def _says_nothing_of_it(error: BaseException) -> bool:
    return isinstance(error, BusyError | WorkerError)


def _by_model(said: Mapping[str, tuple[ModelStatus, ...]]) -> list[ModelStatus]:
    names = dict.fromkeys(status.name for statuses in said.values() for status in statuses)
    return [
        one_status(
            {who: status for who, statuses in said.items() for status in statuses if status.name == name}
        )
        for name in names
    ]


def _noting(away: list[str], status: ModelStatus) -> ModelStatus:
    if not away:
        return status
    words = f"{', '.join(away)} does not answer or is being started again"
    return replace(status, note="; ".join(filter(None, (status.note, words))))
