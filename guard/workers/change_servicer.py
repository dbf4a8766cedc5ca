"""A worker's side of a change that all workers make, or none."""

# ruff: noqa: N802  the protocol names the methods

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from guard.control.api import Agreement, CanaryStatus, SwapReport, VersionInfo
from guard.control.control_room import ControlRoom
from guard.errors import (
    BusyError,
    CandidateError,
    GuardError,
    OperationError,
    ShuttingDownError,
    UnknownModelError,
    UpstreamError,
    WorkerError,
)
from guard.rpc.admin_codec import encode_canary, encode_report, encode_version
from guard.rpc.pb import guard_worker_pb2 as pb
from guard.rpc.pb import guard_worker_pb2_grpc as pb_grpc
from guard.rpc.status import status_of

__all__ = ["ChangeServicer", "encode_failure", "failure_of"]

_KINDS: Final[dict[str, type[GuardError]]] = {
    kind.__name__: kind
    for kind in (BusyError, ShuttingDownError, UnknownModelError, UpstreamError, WorkerError)
}
_GONE: Final = "the parent of the workers gave up the change before all had agreed to it"


class ChangeServicer(pb_grpc.GuardWorkerServicer):
    """Serves ``guard.worker.v1.GuardWorker`` from a worker's control room.

    Args:
        control: Does it.
    """

    def __init__(self, control: ControlRoom) -> None:
        self._control = control

    async def Change(self, steps: AsyncIterator[pb.ChangeStep], context: Any) -> None:
        """Say whether a change could be made, and make it once all others could too."""
        first = await anext(steps)
        could: asyncio.Queue[VersionInfo] = asyncio.Queue(1)
        verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def agreement(candidate: VersionInfo) -> None:
            could.put_nowait(candidate)
            await verdict

        change = asyncio.ensure_future(self._make(first, agreement))
        change.add_done_callback(_seen)
        try:
            asked = asyncio.ensure_future(could.get())
            await asyncio.wait({change, asked}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                await context.write(pb.ChangeState(could=encode_version(asked.result())))
                _settle(verdict, await anext(steps, None))
            asked.cancel()
            await context.write(await asyncio.shield(change))
        finally:
            _settle(verdict, None)  # nothing, if it is settled
            with suppress(asyncio.InvalidStateError):
                verdict.exception()  # seen, though nobody may wait for it any more

    async def _make(self, first: pb.ChangeStep, agreement: Agreement) -> pb.ChangeState:
        try:
            result = await self._begin(first, agreement)
        except Exception as error:  # noqa: BLE001 - told to whoever asked, and logged if it is a defect
            return pb.ChangeState(failed=encode_failure(error))
        if isinstance(result, SwapReport):
            return pb.ChangeState(swapped=encode_report(result))
        return pb.ChangeState(trying=encode_canary(result))

    async def _begin(self, first: pb.ChangeStep, agreement: Agreement) -> SwapReport | CanaryStatus:
        control, actor = self._control, first.actor
        match first.WhichOneof("step"):
            case "swap":
                swap = first.swap
                return await control.swap(
                    swap.model, swap.version, digest=swap.digest, actor=actor, agreement=agreement
                )
            case "rollback":
                return await control.rollback(first.rollback.model, actor=actor, agreement=agreement)
            case "start_canary":
                canary = first.start_canary
                return await control.start_canary(
                    canary.model, canary.version, share=canary.share, actor=actor, agreement=agreement
                )
            case "promote":
                return await control.promote(first.promote.model, actor=actor, agreement=agreement)
            case other:
                raise OperationError(f"the first step of a change: expected which one, got {other!r}")


def encode_failure(error: BaseException) -> pb.ChangeFailure:
    """Return an error as it travels between parent and worker; a defect is logged, and its id travels."""
    if isinstance(error, GuardError):
        failure = pb.ChangeFailure(kind=type(error).__name__, words=_as_text(str(error)))
        if isinstance(error, CandidateError):
            failure.its_own, failure.reason = error.its_own, _as_text(error.reason)
        return failure
    return pb.ChangeFailure(kind=OperationError.__name__, words=status_of(error)[1])


def failure_of(failure: pb.ChangeFailure, said_by: str = "") -> GuardError:
    """Return the error that a failure stands for.

    Args:
        failure: As it travelled.
        said_by: Whose it is, where that is worth telling.
    """
    before = f"{said_by}: " if said_by else ""
    words = f"{before}{failure.words}"
    if failure.kind == CandidateError.__name__:
        reason = f"{before}{failure.reason}" if failure.reason else ""
        return CandidateError(words, its_own=failure.its_own, reason=reason)
    return _KINDS.get(failure.kind, OperationError)(words)


def _settle(verdict: asyncio.Future[None], step: pb.ChangeStep | None) -> None:
    if verdict.done():
        return
    if step is not None and step.WhichOneof("step") == "make_it":
        verdict.set_result(None)
    elif step is not None and step.WhichOneof("step") == "refuse":
        verdict.set_exception(failure_of(step.refuse))
    else:
        verdict.set_exception(WorkerError(_GONE))


def _seen(change: asyncio.Future[pb.ChangeState]) -> None:
    if not change.cancelled():
        change.exception()  # nobody may wait for it any more


def _as_text(words: str) -> str:
    return words.encode(errors="backslashreplace").decode()
