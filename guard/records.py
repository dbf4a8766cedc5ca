"""The records that an operator asked for: an audit log, a quarantine, both or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from guard.audit.log import AuditLog, read_key
from guard.incidents import Witness
from guard.metrics import Metrics
from guard.quarantine import Bounds, Quarantine
from guard.secret_files import check_secret

__all__ = ["Records"]


class Records:
    """What is kept of a running guard; nothing, until something is opened.

    Args:
        metrics: Told of what is kept and what is lost.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._audit: AuditLog | None = None
        self._quarantine: Quarantine | None = None

    def open_audit(self, path: Path, *, max_bytes: int, key_file: Path | None) -> None:
        """Open the audit log (blocks).

        Raises:
            SettingsError: If it cannot be opened or continued, or the key file is none or no secret.
        """
        key = read_key(key_file)
        if key_file is not None:
            check_secret(key_file, "audit_key_file")
        self._audit = AuditLog(path, max_bytes=max_bytes, key=key, counts=self._metrics)

    def open_quarantine(self, folder: Path, bounds: Bounds) -> None:
        """Open the quarantine (blocks).

        Raises:
            SettingsError: If the folder cannot be used.
        """
        self._quarantine = Quarantine(folder, bounds, counts=self._metrics)

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Those who want to hear of inputs that are not simply accepted."""
        return tuple(room for room in (self._audit, self._quarantine) if room is not None)

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Write down, in the audit log if there is one, what was done or happened."""
        if self._audit is not None:
            self._audit.event(kind, **fields)

    def close(self, timeout_s: float) -> None:
        """Write what waits, and close (blocks).

        Args:
            timeout_s: Longest wait for each.
        """
        if self._quarantine is not None:
            self._quarantine.close(timeout_s)
        if self._audit is not None:
            self._audit.close(timeout_s)
        self._audit = self._quarantine = None
