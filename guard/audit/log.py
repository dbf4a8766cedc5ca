"""Writes down every verdict other than ``accept``, and whatever an operator does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from guard.audit.chain import Link
from guard.audit.ledger import Ledger, Note
from guard.errors import SettingsError
from guard.incidents import NO_LABEL, Incident
from guard.writer_thread import WriterThread

__all__ = ["AuditCounts", "AuditLog", "read_key"]

_log = logging.getLogger(__name__)

_MIN_KEY_BYTES: Final = 16
_MAX_KEY_BYTES: Final = 4096


@runtime_checkable
class AuditCounts(Protocol):
    """What is counted of an audit log; ``Metrics`` does."""

    def audit_records(self, written: int, lost: int) -> None:
        """Count lines that were written, and records that were lost for want of room."""
        ...

    def audit_failing(self, failing: bool) -> None:
        """Say whether the log cannot be written just now."""
        ...


class AuditLog:
    """An audit log, open; a witness of the data plane.

    What is told is taken in at once and written by a thread. While the disk takes nothing, records wait;
    where no more may wait they are lost, the service goes on, and a record of kind ``gap`` tells how many.

    Args:
        path: See :class:`~guard.audit.ledger.Ledger`, as for ``max_bytes`` and ``key``.
        counts: Told of what is written and lost.
        max_waiting: Records that may wait.
        retry_s: Seconds between attempts to write while that fails.

    Raises:
        SettingsError: If it cannot be opened, or not continued.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        key: bytes | None,
        counts: AuditCounts,
        max_waiting: int = 10_000,
        retry_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._ledger = Ledger(path, max_bytes=max_bytes, key=key)
        self._counts = counts
        self._clock = clock
        self._failing = False
        _log.info("audit log opened", extra=self._where())
        self._writer: WriterThread[Note] = WriterThread(
            self._write, name="audit", limit=max_waiting, retry_s=retry_s
        )

    @property
    def last(self) -> Link:
        """Number and hash of the last line written."""
        return self._ledger.last

    def saw(self, incident: Incident) -> None:
        """Write an incident down, without its image."""
        fields = {
            "model": incident.model,
            "version": incident.version,
            "digest": incident.digest,
            "request_id": incident.request_id,
            "client": incident.client,
            "row": incident.row,
            "verdict": incident.verdict.value,
            "tier": incident.tier and incident.tier.value,
            "policy": incident.policy.value,
            "score": incident.score,
            "p_value": incident.p_value,
            "passes": incident.passes,
            "reason": incident.reason,
            "label": None if incident.label == NO_LABEL else incident.label,
        }
        self._writer.put(Note("verdict", incident.at, fields))

    def event(self, kind: str, /, **fields: object) -> None:
        """Write down what was done or happened; from any thread, at once.

        Args:
            kind: What kind of thing, such as ``swap``.
            fields: What there is to say of it.
        """
        self._writer.put(Note(kind, self._clock(), fields))

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and close the file (blocks); what cannot be written is counted and logged."""
        lost = self._writer.close(timeout_s)
        if lost:
            self._counts.audit_records(0, lost)
            _log.error("audit records lost", extra={"path": str(self._path), "lost": lost})
        _log.info("audit log closed", extra=self._where())
        self._ledger.close()

    def _write(self, notes: list[Note], lost: int) -> bool:
        gap = {"lost": lost, "why": "more records waited than may wait"}
        try:
            self._put(notes)
            self._put([Note("gap", self._clock(), gap)] if lost else [])
        except OSError as error:
            self._fails(True, error)
            return False
        self._counts.audit_records(0, lost)
        self._fails(False)
        return True

    def _put(self, notes: list[Note]) -> None:
        waiting = len(notes)
        try:
            self._ledger.write(notes)
        finally:
            self._counts.audit_records(waiting - len(notes), 0)

    def _fails(self, failing: bool, error: OSError | None = None) -> None:
        if failing == self._failing:
            return
        self._failing = failing
        self._counts.audit_failing(failing)
        if failing:
            why = {"why": str(error)}
            _log.error("audit log cannot be written; records wait", extra={**self._where(), **why})
        else:
            _log.info("audit log can be written again", extra=self._where())

    def _where(self) -> dict[str, object]:
        last = self._ledger.last
        return {"path": str(self._path), "seq": last.seq, "hash": last.hash}


def read_key(path: Path | None) -> bytes | None:
    """Return the content of a key file, white space around it left off; None for no file.

    Raises:
        SettingsError: If it cannot be read, or is too short for a key.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_KEY_BYTES + 1).strip()
    except OSError as error:
        raise SettingsError(
            f"key file {path} cannot be read ({error.strerror}); allow it, or name another one"
        ) from error
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise SettingsError(
            f"key file {path}: expected {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes, got {len(key)}; make one "
            f"with `openssl rand -hex 32`"
        )
    return key
