"""A progress bar on the terminal, and the seconds each stage took."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

__all__ = ["Progress", "StageClock"]


class Progress:
    """A bar on stderr, shown only to a person at a terminal.

    Args:
        total: Steps in all.
        label: What is being done.
        quiet: Never show it.
    """

    def __init__(self, total: int, label: str, quiet: bool) -> None:
        hidden = quiet or not sys.stderr.isatty()
        screen = shutil.get_terminal_size()  # never 0, which some terminals say and which would hide the bar
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=" passes",
            unit_scale=True,
            disable=hidden,
            leave=False,
            ncols=min(screen.columns, 100),
            nrows=screen.lines,
        )

    def step(self, count: int) -> None:
        """Move on by ``count`` steps."""
        self._bar.update(count)

    def expect(self, count: int) -> None:
        """Learn of ``count`` more steps to come."""
        self._bar.total = (self._bar.total or 0) + count
        self._bar.refresh()

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
