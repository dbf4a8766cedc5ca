"""Keeps suspicious inputs as they are told, without ever holding up whoever tells."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from guard.detection.threshold import Verdict
from guard.incidents import Incident
from guard.metrics_catalogue import DropReason
from guard.quarantine.shelf import Bounds
from guard.quarantine.store import Store
from guard.writer_thread import WriterThread

__all__ = ["Quarantine", "QuarantineCounts"]

_log = logging.getLogger(__name__)

_KEPT: Final = frozenset({Verdict.REJECT, Verdict.FLAG})
_OVERHEAD_BYTES: Final = 1024
_IDLE_S: Final = 60.0


@runtime_checkable
class QuarantineCounts(Protocol):
    """What is counted of a quarantine; ``Metrics`` does."""

    def quarantine_holds(self, items: int, held_bytes: int) -> None:
        """Say what is there."""
        ...

    def quarantine_dropped(self, reason: DropReason, count: int) -> None:
        """Count inputs that were not kept."""
        ...


class Quarantine:
    """A quarantine, open; a witness of the data plane that keeps rejected and flagged inputs.

    Args:
        root: See :class:`~guard.quarantine.store.Store`, as for ``bounds``.
        counts: Told of what is kept and what is not.
        max_waiting_bytes: Of images that may wait for the disk; as much again may be being written.
        clock: Seconds since the epoch.

    Raises:
        SettingsError: If the folder cannot be used.
    """

    def __init__(
        self,
        root: Path,
        bounds: Bounds,
        *,
        counts: QuarantineCounts,
        max_waiting_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._counts = counts
        self._clock = clock
        self._failing = False
        self._store = Store(root, bounds)
        self._write([], 0)
        _log.info(
            "quarantine opened",
            extra={"path": str(root), "items": self._store.items, "bytes": self._store.held_bytes},
        )
        self._writer: WriterThread[Incident] = WriterThread(
            self._write, name="quarantine", limit=max_waiting_bytes, idle_s=_IDLE_S
        )

    def saw(self, incident: Incident) -> None:
        """Keep the input, if it is suspicious."""
        if incident.verdict in _KEPT:
            image = incident.image.copy()  # a view would hold the whole request in memory
            self._writer.put(replace(incident, image=image), image.nbytes + _OVERHEAD_BYTES)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and let go of the folder (blocks)."""
        left = self._writer.close(timeout_s)
        if left:
            self._counts.quarantine_dropped(DropReason.QUEUE_FULL, left)
        self._store.close()

    def _write(self, incidents: list[Incident], lost: int) -> bool:
        try:
            dropped = self._store.keep(incidents, self._clock())
        except OSError as error:
            dropped = Counter({DropReason.UNWRITABLE: len(incidents)})
            _log.error("quarantine cannot be used", extra={"path": str(self._root), "why": str(error)})
        dropped[DropReason.QUEUE_FULL] += lost
        for reason, count in dropped.items():
            self._counts.quarantine_dropped(reason, count)
        self._counts.quarantine_holds(self._store.items, self._store.held_bytes)
        self._tell(bool(incidents), +dropped)
        return True

    def _tell(self, kept_any: bool, dropped: Counter[DropReason]) -> None:
        """Log that inputs are not kept when it begins, and when it is over."""
        if dropped and not self._failing:
            reasons = {reason.value: count for reason, count in dropped.items()}
            _log.error(
                "suspicious inputs are not kept in quarantine", extra={"path": str(self._root), **reasons}
            )
        elif kept_any and not dropped and self._failing:
            _log.info("suspicious inputs are kept in quarantine again", extra={"path": str(self._root)})
        if kept_any or dropped:
            self._failing = bool(dropped)
