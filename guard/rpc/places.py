"""How many requests may be under way at once, of all calls and all streams together.

gRPC bounds the calls, but a stream is one call whatever it brings. So each request takes a place: a call is
refused where there is none, the message of a stream waits, and a quarter of all places is kept for calls, as
streams would fill them up as fast as they become free. So it is with rows, of which a message may bring many.
"""

from __future__ import annotations

import asyncio
from typing import Final

from guard.errors import QueueFullError

__all__ = ["Places"]

_WINDOW: Final = 32


class Places:
    """Places for requests; used on the event loop.

    Args:
        limit: How many there are, at least 1.
        rows: How many rows may wait for a model, at least 1.

    Attributes:
        streams: Most streams that may be open, as each is one of the calls that gRPC counts.
        window: Most messages of one stream under way: enough for full batches, too few to take everything.
    """

    def __init__(self, limit: int, rows: int) -> None:
        self._limit = limit
        self.streams = max(1, limit // 2)
        self.window = max(1, min(_WINDOW, limit // 4))
        self._all = asyncio.Semaphore(limit)
        self._of_streams = asyncio.Semaphore(max(1, limit - limit // 4))
        self._rows_of_streams = self._free_rows = max(1, rows - rows // 4)
        self._rows_came_free = asyncio.Event()
        self._next_in_line = asyncio.Lock()

    def of_call(self) -> asyncio.Semaphore:
        """Return a place for a call, to be held in ``async with``, which does not wait.

        Raises:
            QueueFullError: If there is none.
        """
        if self._all.locked():
            raise QueueFullError(
                f"{self._limit} requests are under way already (max_concurrent_requests), those of streams "
                f"included; retry later, or have the operator add capacity"
            )
        return self._all

    async def take_for_stream(self, rows: int) -> int:
        """Wait for a place for a message of a stream; who comes first is served first.

        Args:
            rows: That it brings; more than there ever are at a time wait until all are free.

        Returns:
            What :meth:`leave_by_stream` is to be told.
        """
        taken = min(max(1, rows), self._rows_of_streams)
        async with self._next_in_line:
            while self._free_rows < taken:
                self._rows_came_free.clear()
                await self._rows_came_free.wait()
            await self._of_streams.acquire()
            try:
                await self._all.acquire()
            except BaseException:
                self._of_streams.release()
                raise
            self._free_rows -= taken
        return taken

    def leave_by_stream(self, taken: int) -> None:
        """Give back what :meth:`take_for_stream` took."""
        self._all.release()
        self._of_streams.release()
        self._free_rows += taken
        self._rows_came_free.set()
