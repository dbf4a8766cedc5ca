"""Which versions of a model lie in the repository, told without waiting long for a disk that hangs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from guard.repository import find_versions

__all__ = ["Listed", "Listing"]

TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class Listed:
    """What was seen.

    Attributes:
        versions: Ascending.
        note: Why that may not be what is there now; empty if it is.
    """

    versions: tuple[str, ...] = ()
    note: str = ""


class Listing:
    """Lists the versions of one model, one listing at a time.

    Each is made by a thread of its own, so that a disk that hangs holds up no other work and no other thread
    waits for it, not even at the end of the process.

    Args:
        directory: ``<repository>/<model>``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen = Listed()
        self._running: asyncio.Future[Listed] | None = None

    async def look(self) -> Listed:
        """Return what is there or, where that cannot be told soon, what was there when last it could."""
        if self._running is None or self._running.done():
            self._running = self._begin()
        running = self._running
        await asyncio.wait([running], timeout=TIMEOUT_S)
        listed = running.result() if running.done() else Listed(note=f"no answer within {TIMEOUT_S:g} s")
        if not listed.note:
            self._seen = listed
            return listed
        return replace(
            self._seen,
            note=f"the versions in {self._directory} cannot be listed ({listed.note}), shown are those that "
            f"were seen last; see to the disk of the repository",
        )

    def _begin(self) -> asyncio.Future[Listed]:
        listed: Future[Listed] = Future()
        name = f"listing-{self._directory.name}"
        threading.Thread(target=lambda: listed.set_result(self._list()), name=name, daemon=True).start()
        return asyncio.wrap_future(listed)

    def _list(self) -> Listed:
        try:
            return Listed(tuple(path.name for path in find_versions(self._directory)))
        except OSError as error:
            return Listed(note=error.strerror or type(error).__name__)
