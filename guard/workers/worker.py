"""One of the workers: whatever process it is just now, and how it is asked."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from guard.control.api import CanaryStatus, ModelStatus
from guard.control.served_versions import ModelRecord
from guard.errors import BusyError, OperationError, UnknownModelError, WorkerError
from guard.rpc.admin_codec import decode_canary, decode_statuses
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.pb.guard_admin_pb2_grpc import GuardAdminStub
from guard.rpc.pb.guard_worker_pb2_grpc import GuardWorkerStub
from guard.rpc.unix_socket import address_of_socket
from guard.workers.process import Process
from guard.workers.seat import Seat

__all__ = ["Worker"]

_Answer = TypeVar("_Answer")

_ANSWER_S: Final = 5.0
_LOOK_S: Final = 1.0
_SILENCES: Final = 2
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_ERROR_OF: Final = {
    grpc.StatusCode.ABORTED: BusyError,
    grpc.StatusCode.NOT_FOUND: UnknownModelError,
    grpc.StatusCode.FAILED_PRECONDITION: OperationError,
}


class Worker:
    """One place among the workers, which processes hold one after the other.

    Args:
        number: Which it is, from 1.
        folder: Where its sockets are.
        patience_s: Longest that a process may take to end before it is killed.
        answer_s: Longest that it may take to say how it does.

    Attributes:
        seat: What a process is told that takes this place now.
        process: The one that holds it; None while there is none.
        serves: Whether that one takes requests.
        generation: How many there have been.
    """

    def __init__(self, number: int, folder: Path, *, patience_s: float, answer_s: float = _ANSWER_S) -> None:
        self.seat = Seat(number=number, folder=folder)
        self.process: Process | None = None
        self.serves = False
        self.generation = 0
        self._patience_s = patience_s
        self._answer_s = answer_s
        self._channel: Any = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.seat.name

    def take(self, process: Process) -> None:
        """Have a process hold the place."""
        self.process = process
        self.generation += 1
        self._channel = grpc.aio.insecure_channel(address_of_socket(self.seat.admin_socket), _OPTIONS)

    async def leave(self) -> None:
        """Have none hold it."""
        self.serves, self.process = False, None
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def start_again(self) -> None:
        """End the process, for another to take its place; one that does not end in time is killed."""
        self.serves = False
        if self.process is not None:
            self.process.signal(signal.SIGTERM)
            loop = asyncio.get_running_loop()
            loop.call_later(self._patience_s, self.process.signal, signal.SIGKILL)

    def told(self, records: Mapping[str, ModelRecord]) -> None:
        """Have the next process serve what the others do."""
        self.seat = self.seat.model_copy(update={"records": dict(records)})

    def changes(self) -> Any:
        """Return the stub for changes.

        Raises:
            WorkerError: If there is no process.
        """
        return GuardWorkerStub(self._open_channel())  # type: ignore[no-untyped-call]

    async def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what it knows of one model, or of all.

        Raises:
            UnknownModelError: If it does not serve that one.
            WorkerError: If it does not answer.
        """
        return decode_statuses(await self._ask("Status", pb.StatusRequest(model=model)))

    async def stop_canary(self, model: str) -> CanaryStatus:
        """Take a candidate off its traffic.

        Raises:
            OperationError: If there is none.
            WorkerError: If it does not answer.
        """
        return decode_canary(await self._ask("StopCanary", pb.StopCanaryRequest(model=model)))

    async def answering(self, call: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Await a call that may take long, for as long as the process answers anything at all.

        Raises:
            WorkerError: If it is silent: stopped, or stuck.
        """
        asked, silences = asyncio.ensure_future(call), 0
        try:
            while not (await asyncio.wait({asked}, timeout=_LOOK_S))[0]:
                try:
                    await self.status()
                    silences = 0
                except WorkerError as error:
                    silences += 1
                    if silences == _SILENCES and not asked.done():
                        raise WorkerError(
                            f"{error}; if it goes on, end that process: it is started again"
                        ) from error
            return asked.result()
        finally:
            asked.cancel()

    async def _ask(self, method: str, request: Any) -> Any:
        stub = GuardAdminStub(self._open_channel())  # type: ignore[no-untyped-call]
        try:
            return await getattr(stub, method)(request, timeout=self._answer_s)
        except grpc.aio.AioRpcError as error:
            kind = _ERROR_OF.get(error.code())
            if kind is None:
                raise WorkerError(f"{self.name} does not answer: {error.details()}; see its log") from error
            raise kind(error.details() or "") from error
        except asyncio.CancelledError:
            if self.process is not None:
                raise
            raise WorkerError(f"{self.name} has ended meanwhile; it is started again") from None

    def _open_channel(self) -> Any:
        if self._channel is None:
            raise WorkerError(f"{self.name} is being started again; try again in a while")
        return self._channel
