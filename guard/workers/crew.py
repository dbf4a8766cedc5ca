"""Keeps the workers: starts them, starts again those that end, and ends all of them together."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from guard.control.served_versions import ModelRecord
from guard.errors import WorkerError
from guard.workers.counts import WorkerCounts
from guard.workers.lifeline import RECORD
from guard.workers.process import Process
from guard.workers.seat import Order, Seat
from guard.workers.worker import Worker

__all__ = ["Crew"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_LONG_ENOUGH_S: Final = 60.0
_GRACE_S: Final = 10.0  # for a device call that runs when the time to stop is over, and to close


class Crew:
    """Several workers.

    The first is started alone: what it comes to serve the others are told to serve, and what keeps it from
    starting is told once. A worker that ends is started again, soon at first and every half a minute at most
    if it goes on; from when it serves it is one of the others again, if it serves what they serve.

    Args:
        count: How many.
        folder: Where their private sockets are.
        order: Makes the order for a seat.
        counts: Told what becomes of them.
        joins: Called with a worker that serves again, before changes include it; where it raises, that one is
            started again.
        said: Told which worker said what, but for what is kept here.
        drain_timeout_s: Longest that one may take to answer what it accepted, when it is to be started again.

    Attributes:
        workers: All of them, in order.
        records: What serves, by model.
        models: What is served, by name, once started.
    """

    def __init__(
        self,
        count: int,
        folder: Path,
        *,
        order: Callable[[Seat], Order],
        counts: WorkerCounts,
        joins: Callable[[Worker], Awaitable[None]],
        said: Callable[[Worker, str, Mapping[str, Any]], None],
        drain_timeout_s: float,
    ) -> None:
        patience_s = drain_timeout_s + _GRACE_S
        self.workers = tuple(Worker(each, folder, patience_s=patience_s) for each in range(1, count + 1))
        self.records: dict[str, ModelRecord] = {}
        self.models: list[str] = []
        self._order = order
        self._counts = counts
        self._joins = joins
        self._said = said
        self._keeping: list[asyncio.Task[None]] = []

    @property
    def serving(self) -> tuple[Worker, ...]:
        """Those that take requests."""
        return tuple(worker for worker in self.workers if worker.serves)

    async def start(self) -> None:
        """Start all.

        Raises:
            WorkerError: If one cannot; the others are ended.
        """
        first, *others = self.workers
        try:
            await self._begin(first)
            await _all(self._begin(worker) for worker in others)
        except BaseException:
            with suppress(WorkerError):
                await self.stop(0.0)
            raise

    async def stop(self, drain_timeout_s: float) -> None:
        """End all, each once it has answered what it accepted.

        Args:
            drain_timeout_s: Longest that they may take for that; a few seconds more and they are killed.

        Raises:
            WorkerError: If one had to be killed, or failed while it ended.
        """
        await _cancelled(self._keeping)
        held = [worker for worker in self.workers if worker.process is not None]
        codes = await asyncio.gather(*(_end(worker, drain_timeout_s + _GRACE_S) for worker in held))
        self._counts.serving(0)
        right = {0, -signal.SIGTERM}  # the latter where it had not begun to start
        wrong = [
            f"{worker.name}: {code}" for worker, code in zip(held, codes, strict=True) if code not in right
        ]
        if wrong:
            raise WorkerError(f"workers did not stop as they should (exit codes {', '.join(wrong)})")

    async def _begin(self, worker: Worker) -> None:
        """Start a worker for the first time, and keep it from then on."""
        process = await self._start(worker)
        fields = await process.ready
        self.models = sorted(fields["models"])
        self._learn(fields["records"])
        self._now_serves(worker)
        self._keeping.append(asyncio.create_task(self._keep(worker)))

    async def _keep(self, worker: Worker) -> None:
        """Start a worker again whenever it ends."""
        pause_s = _FIRST_PAUSE_S
        while True:
            process, since = worker.process, time.monotonic()
            if process is not None:
                code = await asyncio.shield(process.ended)
                _log.error(
                    "a worker ended", extra={"worker": worker.name, "pid": process.pid, "exit_code": code}
                )
                await worker.leave()
                self._counts.serving(len(self.serving))
            pause_s = _FIRST_PAUSE_S if time.monotonic() - since > _LONG_ENOUGH_S else pause_s
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._counts.restarted()
            try:
                await self._again(worker)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others serve on
                _log.error(
                    "a worker cannot join the others", extra={"worker": worker.name, "why": str(error)}
                )
                worker.start_again()

    async def _again(self, worker: Worker) -> None:
        worker.told(self.records)
        process = await self._start(worker)
        fields = await asyncio.shield(process.ready)
        await self._joins(worker)
        if _parsed(fields["records"]) != self.records:
            raise WorkerError("another version came to serve while it started; it is started again")
        self._now_serves(worker)
        _log.info("a worker serves again", extra={"worker": worker.name, "pid": process.pid})

    async def _start(self, worker: Worker) -> Process:
        def said(kind: str, fields: Mapping[str, Any]) -> None:
            if kind == RECORD:
                if worker.serves or not self.records:
                    self._learn({fields["model"]: fields["record"]})
            else:
                self._said(worker, kind, fields)

        process = await Process.start(self._order(worker.seat), said)
        worker.take(process)
        return process

    def _learn(self, records: Mapping[str, Any]) -> None:
        self.records.update(_parsed(records))
        for worker in self.workers:
            worker.told(self.records)

    def _now_serves(self, worker: Worker) -> None:
        worker.serves = True
        self._counts.serving(len(self.serving))


async def _all(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all; where one fails, the others are cancelled, and what it raised is raised."""
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _parsed(records: Mapping[str, Any]) -> dict[str, ModelRecord]:
    return {name: ModelRecord.model_validate(record) for name, record in records.items()}


async def _end(worker: Worker, patience_s: float) -> int:
    """End a process, and return its exit code."""
    process = worker.process
    assert process is not None
    process.signal(signal.SIGTERM)
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(process.ended), patience_s)
    if not process.ended.done():
        _log.error("a worker does not stop and is killed", extra={"worker": worker.name, "pid": process.pid})
        process.signal(signal.SIGKILL)
    code = await process.ended
    await worker.leave()
    return code
