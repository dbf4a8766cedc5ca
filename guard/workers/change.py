"""The parent's side of a change that all workers make, or none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc

from guard.control.api import CanaryStatus, SwapReport, VersionInfo
from guard.errors import CandidateError, GuardError, WorkerError
from guard.rpc.admin_codec import decode_canary, decode_report, decode_version
from guard.rpc.pb import guard_worker_pb2 as pb
from guard.workers.change_servicer import encode_failure, failure_of
from guard.workers.worker import Worker

__all__ = ["change_all"]

_log = logging.getLogger(__name__)

Result = SwapReport | CanaryStatus


async def change_all(workers: Sequence[Worker], step: pb.ChangeStep) -> list[Result]:
    """Make a change in all workers, or in none; return what those say of it that made it.

    The first one is asked alone, so that a version that is unfit is loaded and counted once. What it would
    do, with which digest, the others are asked for then.

    Args:
        workers: Those that take requests; one that ends in the middle is one that could not.
        step: Which change.

    One that could and then did not, as it ended meanwhile, is started again and serves what the others do.

    Raises:
        GuardError: The first reason why one could not, and which one.
    """
    first, *others = (_Change(worker) for worker in workers)
    changes = [first, *others]
    try:
        await first.prepare(step)
        _fix(step, first)
        await _raising_first([change.prepare(step) for change in others])
        for change in others:
            _require_same(change, first)
    except asyncio.CancelledError:
        for change in changes:
            change.give_up()
        raise
    except BaseException as error:
        await asyncio.gather(*(change.refuse(error) for change in changes))
        raise
    results = await asyncio.gather(*(change.make() for change in changes), return_exceptions=True)
    made = [result for result in results if isinstance(result, Result)]
    if not made:
        raise next(result for result in results if isinstance(result, BaseException))
    for change, result in zip(changes, results, strict=True):
        if isinstance(result, BaseException):
            _log.error(
                "a worker did not make a change that the others made, and is started again",
                extra={"worker": change.worker.name, "why": str(result)},
            )
            change.worker.start_again()
    return made


class _Change:
    """One worker's part in it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.could: VersionInfo | None = None
        self.done: Result | None = None
        self._call: Any = None

    async def prepare(self, step: pb.ChangeStep) -> None:
        """Have the worker do all but the change itself; it may find that there is nothing to do."""
        self._call = self.worker.changes().Change()
        state = await self._say(step)
        if state.WhichOneof("state") == "could":
            self.could = decode_version(state.could)
        else:
            self.done = self._result_of(state)

    async def make(self) -> Result:
        """Have it make the change."""
        if self.done is None:
            self.done = self._result_of(await self._say(pb.ChangeStep(make_it=True)))
        return self.done

    async def refuse(self, error: BaseException) -> None:
        """Have it change nothing, and wait until it has put everything back."""
        if self.could is None:
            self.give_up()
            return
        try:
            await self._say(pb.ChangeStep(refuse=encode_failure(_told(error))))
        except (WorkerError, asyncio.CancelledError):
            self.give_up()

    def give_up(self) -> None:
        """Wait for it no more; the worker changes nothing, unless it was told to."""
        if self._call is not None:
            self._call.cancel()

    async def _say(self, step: pb.ChangeStep) -> pb.ChangeState:
        try:
            state = await self.worker.answering(self._exchange(step))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise WorkerError(f"{self.worker.name} has ended meanwhile or failed; see its log") from error
        if not isinstance(state, pb.ChangeState):
            raise WorkerError(f"{self.worker.name} has ended meanwhile; it is started again")
        return state

    async def _exchange(self, step: pb.ChangeStep) -> Any:
        await self._call.write(step)
        return await self._call.read()

    def _result_of(self, state: pb.ChangeState) -> Result:
        match state.WhichOneof("state"):
            case "swapped":
                return decode_report(state.swapped)
            case "trying":
                return decode_canary(state.trying)
            case _:
                raise failure_of(state.failed, self.worker.name)


def _fix(step: pb.ChangeStep, first: _Change) -> None:
    """Have the others take the very version that the first one took."""
    if step.WhichOneof("step") == "swap":
        version = first.could or (first.done.new if isinstance(first.done, SwapReport) else None)
        if version is not None:
            step.swap.version, step.swap.digest = version.version, version.digest


def _require_same(change: _Change, first: _Change) -> None:
    one, other = first.could, change.could
    if one is not None and other is not None and one.digest != other.digest:
        raise CandidateError(
            f"{change.worker.name} would take version {other.version!r} ({other.digest[:12]}) where "
            f"{first.worker.name} takes {one.version!r} ({one.digest[:12]}); nothing was changed: files of "
            f"the repository were changed meanwhile, or the workers served different versions; try again"
        )


def _told(error: BaseException) -> BaseException:
    return error if isinstance(error, GuardError) else WorkerError("the change was given up")


async def _raising_first(parts: list[Any]) -> None:
    """Await all of them, and raise the first error."""
    for result in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
