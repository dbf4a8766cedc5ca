"""A limit on the processor time of what is done in a block."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TooLongError", "processor_limit"]


class TooLongError(Exception):
    """What was done in the block took too much processor time."""


@contextmanager
def processor_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooLongError` in the block once this process has spent so many more processor seconds."""

    def cut(*_: object) -> None:
        raise TooLongError(f"cut after {seconds:g} processor seconds")

    before = signal.signal(signal.SIGPROF, cut)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
