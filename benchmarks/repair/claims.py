"""Who does which run: a lock on a file, which is given back whatever becomes of the process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["claimed"]


@contextmanager
def claimed(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file for as long as the block lasts; tell whether it was got.

    Args:
        lock: The file, made if it is not there.
        wait: Wait for it where another process holds it, rather than go without.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
