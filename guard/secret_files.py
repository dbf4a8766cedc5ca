"""Files that hold a secret: who may read them besides those who are meant to."""

from __future__ import annotations

import stat
from pathlib import Path

from guard.errors import SettingsError

__all__ = ["check_secret", "is_exposed"]


def is_exposed(path: Path) -> bool:
    """Return whether everybody on the machine may read or write a file.

    Raises:
        OSError: If it is not there.
    """
    return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))


def check_secret(path: Path, setting: str) -> None:
    """Refuse a file that is no secret.

    Args:
        path: It is there.
        setting: That names it.

    Raises:
        SettingsError: If everybody on the machine may read or write it.
    """
    if is_exposed(path):
        raise SettingsError(
            f"{setting} {path} can be read or written by everybody on this machine; `chmod o-rw` it "
            f"(a Kubernetes secret: defaultMode: 0440)"
        )
