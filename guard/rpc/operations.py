"""Operations run to their end, whether or not whoever asked still waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Operations"]

_LOG = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Operations:
    """Runs what was asked for apart from the call that asked.

    gRPC cancels a call when its client hangs up or runs out of time. A swap must not be dropped half way
    because somebody pressed Ctrl-C.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Return what the work returns, or raise what it raises; a cancelled caller leaves it running."""
        task = asyncio.create_task(work)
        self._running.add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell)  # nobody else will
            raise
        finally:
            task.add_done_callback(self._running.discard)

    async def finish(self, patience_s: float) -> None:
        """Wait for what still runs, and cancel it when ``patience_s`` is over."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _tell(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.warning("an operation whose caller had left failed", extra={"why": str(error)}, exc_info=error)
