"""The files of one work folder: written whole or not at all, by one job at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calibration.errors import OptionError

__all__ = ["PRIVATE", "only_here", "write_text"]

PRIVATE = 0o700
"""The folder holds the images that overlays are drawn from, which are secret."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Make a folder that others cannot read, and hold it against a second job.

    Raises:
        OptionError: If it cannot be made, or another job works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise OptionError(f"--out {folder} cannot be written ({error.strerror}); choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OptionError(
                f"--out {folder}: another guard heal works in it; wait for it, or choose another folder"
            ) from error
        yield
