"""The files of one audit log: ``audit.jsonl`` is written, ``audit-000001.jsonl`` … were, in that order."""

from __future__ import annotations

import re
from pathlib import Path

from guard.errors import MissingFileError, SettingsError

__all__ = ["files_of", "finished_files", "next_finished"]


def finished_files(active: Path) -> list[Path]:
    """Return the files of a log that are full, the oldest first."""
    name = re.compile(re.escape(active.stem) + r"-([0-9]{6,})" + re.escape(active.suffix))
    found = [
        (int(match[1]), path) for path in active.parent.iterdir() if (match := name.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def next_finished(active: Path) -> Path:
    """Return the name that the file being written takes once it is full."""
    full = finished_files(active)
    number = int(full[-1].stem.rpartition("-")[2]) + 1 if full else 1
    return active.with_name(f"{active.stem}-{number:06d}{active.suffix}")


def files_of(place: Path) -> list[Path]:
    """Return the files of a log in the order of its chain.

    Args:
        place: The file that is being written, with which go all that were before; one that is full, which
            stands for itself; or a folder that holds one log.

    Raises:
        MissingFileError: If there is none.
        SettingsError: If the folder holds several.
    """
    if place.is_dir():
        place = _only_log(place)
    before = finished_files(place) if place.parent.is_dir() else []
    there = [path for path in (*before, place) if path.is_file()]
    if not there:
        raise MissingFileError(
            f"there is no audit log {place}; expected the file of the setting 'audit_log', or its folder"
        )
    return there


def _only_log(folder: Path) -> Path:
    names = {re.sub(r"-[0-9]{6,}$", "", path.stem) + path.suffix for path in folder.glob("*.jsonl")}
    if not names:
        raise MissingFileError(f"{folder} holds no audit log; expected files named like audit.jsonl")
    if len(names) > 1:
        raise SettingsError(
            f"{folder} holds {len(names)} audit logs ({', '.join(sorted(names))}); name the file of one"
        )
    return folder / names.pop()
