"""A progress bar on the terminal, lines where there is none, and the seconds each stage took."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from tqdm import tqdm

__all__ = ["Progress", "StageClock"]


LINE_EVERY_S: Final = 30.0
"""Seconds between two lines where no terminal shows a bar, as in a pipeline's log."""


class Progress:
    """A bar on stderr for a person at a terminal; elsewhere a line every half a minute.

    Args:
        total: Steps in all.
        label: What is being done.
        quiet: Never show it.
    """

    def __init__(self, total: int, label: str, quiet: bool) -> None:
        terminal = sys.stderr.isatty()
        self._label, self._speaks = label, not quiet and not terminal
        self._done, self._total = 0, total
        self._started = self._said = time.monotonic()
        screen = shutil.get_terminal_size()  # never 0, which some terminals say and which would hide the bar
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=" passes",
            unit_scale=True,
            disable=quiet or not terminal,
            leave=False,
            ncols=min(screen.columns, 100),
            nrows=screen.lines,
        )

    def step(self, count: int) -> None:
        """Move on by ``count`` steps."""
        self._bar.update(count)
        self._done += count
        if self._speaks and time.monotonic() - self._said >= LINE_EVERY_S:
            self._say()

    def expect(self, count: int) -> None:
        """Learn of ``count`` more steps to come."""
        self._bar.total = (self._bar.total or 0) + count
        self._total += count
        self._bar.refresh()

    def _say(self) -> None:
        self._said = time.monotonic()
        gone = self._said - self._started
        known = 0 < self._done <= self._total
        share = f"{self._done / self._total:.0%}, " if known else ""
        left = f", about {gone * (self._total - self._done) / self._done:.0f} s left" if known else ""
        sys.stderr.write(f"{self._label}: {share}{gone:.0f} s gone{left}\n")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class StageClock:
    """Seconds spent in each named stage, in the order they were entered."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the block under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds in all stages together."""
        return sum(self.seconds.values())
