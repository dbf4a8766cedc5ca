"""Lets requests through to a model server, counts those inside, and holds the others while it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turnstile"]


class Turnstile:
    """Used on the event loop; whoever finds it closed waits for whoever closed it.

    Attributes:
        closed: Whether requests are held.
    """

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._left = asyncio.Event()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request for the length of a ``with`` block."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    async def empty(self) -> None:
        """Wait until nobody is inside; those who come meanwhile are kept out by ``closed`` alone."""
        while self._inside:
            self._left.clear()
            await self._left.wait()
