"""A bounded waiting room and one thread that writes down what waits there.

Whoever puts something in never waits for a disk: where there is no room it is counted as lost, and the
writer is told how many were, after the last that was taken in before them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["WriterThread"]

_log = logging.getLogger(__name__)

_LAST_WRITE_S: Final = 1.0  # for a write that runs when the time to close is over

T = TypeVar("T")


class WriterThread(Generic[T]):
    """Hands items over to ``write``, in order, all that wait at a time.

    Args:
        write: Called in the thread with the items and the number lost after them. It takes from the list
            what it has written, and returns False where it cannot write now: it is called again, after
            ``retry_s``, with what is left. What it raises is logged, and those items are lost.
        name: Of the thread.
        limit: Weight that may wait, in the unit of :meth:`put`; as much again may be being written.
        retry_s: Seconds between attempts.
        idle_s: Seconds after which ``write`` is called with nothing, where nothing came; None for never.
    """

    def __init__(
        self,
        write: Callable[[list[T], int], bool],
        *,
        name: str,
        limit: int,
        retry_s: float = 1.0,
        idle_s: float | None = None,
    ) -> None:
        self._write = write
        self._limit = limit
        self._retry_s = retry_s
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._waiting: list[T] = []
        self._weight = 0
        self._lost = 0
        self._left = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T, weight: int = 1) -> bool:
        """Take in an item, from any thread, at once; return False if there is no room and it is lost.

        An item that is heavier than all the room there is, is taken in where nothing waits.
        """
        with self._changed:
            if self._closing or (self._waiting and self._weight + weight > self._limit):
                self._lost += 1
                return False
            self._waiting.append(item)
            self._weight += weight
            self._changed.notify()
            return True

    def close(self, timeout_s: float) -> int:
        """Take nothing in any more, write what waits, end the thread (blocks).

        Args:
            timeout_s: Longest wait.

        Returns:
            Items that could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._give_up(len(self._waiting))
            self._waiting = []
        self._thread.join(_LAST_WRITE_S)
        with self._changed:
            return self._left

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            items, lost = taken
            written = self._attempt(items, lost)
            while not written:
                with self._changed:
                    closing = self._changed.wait_for(lambda: self._closing, self._retry_s)
                written = self._attempt(items, lost)
                if closing and not written:
                    with self._changed:
                        self._lost += lost
                        self._give_up(len(items))
                    break

    def _take(self) -> tuple[list[T], int] | None:
        """Return all that waits and what was lost since; None once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._lost or self._closing, self._idle_s)
            if self._closing and not self._waiting and not self._lost:
                return None
            items, lost = self._waiting, self._lost
            self._waiting, self._weight, self._lost = [], 0, 0
            return items, lost

    def _attempt(self, items: list[T], lost: int) -> bool:
        count = len(items)
        try:
            return self._write(items, lost)
        except Exception:  # noqa: BLE001 - whatever it is must not end the thread
            _log.exception("a writer met a defect", extra={"items": count})
            with self._changed:
                if items:
                    self._lost += len(items) + lost
                else:  # it cannot even tell of what was lost
                    self._left += lost
            return True

    def _give_up(self, count: int) -> None:
        self._left += count + self._lost
        self._lost = 0
