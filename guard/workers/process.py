"""One worker process, as its parent sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from guard.errors import WorkerError
from guard.workers.lifeline import FAILED, READY
from guard.workers.seat import Order

__all__ = ["Process", "Said"]

_log = logging.getLogger(__name__)

Said = Callable[[str, Mapping[str, Any]], None]
"""Told the kind of a line that a worker says, and what else is in it; see :mod:`guard.workers.lifeline`."""

# -P: a folder in which somebody starts the guard is no place to import from.
_COMMAND: Final = (sys.executable, "-P", "-m", "guard.worker")
_LONGEST_LINE: Final = 2**24


class Process:
    """A process that was started; made by :meth:`start`.

    Attributes:
        pid: Its number.
        ready: What it says when it serves; an error, if it ends before.
        ended: Its exit code, once it has ended; negative for the signal that ended it.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, said: Said) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.ready: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self._name = name
        self._process = process
        self._said = said
        self._error = ""
        self.ended: asyncio.Task[int] = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, order: Order, said: Said) -> Process:
        """Start a worker.

        It has a process group of its own, so that Ctrl-C reaches the parent alone, and none of the GUARD_*
        variables: they are in the order already.

        Args:
            order: What it has to do.
            said: Told what it says.

        Raises:
            WorkerError: If no process can be started.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
        try:
            process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                process_group=0,
                limit=_LONGEST_LINE,
            )
        except OSError as error:
            raise WorkerError(f"{order.seat.name} cannot be started ({error}); free some memory") from error
        assert process.stdin is not None
        process.stdin.write(order.model_dump_json().encode() + b"\n")  # and it stays open, see Lifeline
        return cls(order.seat.name, process, said)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _listen(self) -> int:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                self._hear(json.loads(line))
            except Exception:  # noqa: BLE001 - a line cut off by a kill, for one; its end is to be noticed still
                _log.exception("what a worker said came to nothing", extra={"worker": self._name})
        code = await self._process.wait()
        if not self.ready.done():
            words = self._error or f"it ended with exit code {code} before it served; its log says why"
            self.ready.set_exception(WorkerError(f"{self._name} cannot start: {words}"))
            self.ready.exception()  # seen, whether or not anybody waits for it
        return code

    def _hear(self, fields: dict[str, Any]) -> None:
        kind = fields.pop("kind")
        if kind == READY and not self.ready.done():
            self.ready.set_result(fields)
        elif kind == FAILED:
            self._error = fields["error"]
        else:
            self._said(kind, fields)
