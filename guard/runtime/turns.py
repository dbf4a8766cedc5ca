"""Whose turn it is: clients in turn, and each client's tasks in turn. Pure.

A turn is one unit of work of one task. Between two turns of a client every other client that has work had
one, whatever either of them has waiting; and between two turns of a task every other of its client's had one.

::

    a: 1 2 3 4 …  ┐
    b: 1          ├─►  a1 b1 c1 │ a2 c2 │ a3 │ …        one unit each, in turn
    c: 1 2        ┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar, runtime_checkable

__all__ = ["Turns"]


@runtime_checkable
class _Task(Hashable, Protocol):
    """What has a turn."""

    @property
    def client(self) -> str:
        """Whose it is."""
        ...

    @property
    def size(self) -> int:
        """How much of its client's room it takes."""
        ...


Task = TypeVar("Task", bound=_Task)
Unit = TypeVar("Unit")


class Turns(Generic[Task]):
    """Tasks in turn; a client is known while it has any, so nobody fills memory with names."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[Task, None]] = {}
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many clients have tasks."""
        return len(self._lines)

    def __contains__(self, task: Task) -> bool:
        return task in self._lines.get(task.client, ())

    def size_of(self, client: str) -> int:
        """Return the size of all tasks of a client."""
        return self._sizes.get(client, 0)

    def add(self, task: Task) -> None:
        """Put a task behind those of its client; a client that had none comes after all others."""
        self._lines.setdefault(task.client, {})[task] = None
        self._sizes[task.client] = self.size_of(task.client) + task.size

    def remove(self, task: Task) -> None:
        """Take a task out."""
        line = self._lines[task.client]
        del line[task]
        self._sizes[task.client] -= task.size
        if not line:
            del self._lines[task.client], self._sizes[task.client]

    def units(self, units_of: Callable[[Task], Iterator[Unit]]) -> Iterator[Unit]:
        """Yield units of work in turn; nothing may be added, removed or served while they are taken."""
        return _in_turn(_in_turn(units_of(task) for task in line) for line in self._lines.values())

    def served(self, task: Task) -> None:
        """Put a task and its client behind all others: it had a turn."""
        line = self._lines.pop(task.client)
        line[task] = line.pop(task)
        self._lines[task.client] = line

    def of_the_fullest(self) -> Iterator[Task]:
        """Yield tasks of whoever has most at that moment, were those before already out of the line."""
        sizes = dict(self._sizes)
        lines = {client: iter(line) for client, line in self._lines.items()}
        while sizes:
            client = max(sizes, key=sizes.__getitem__)
            task = next(lines[client], None)
            if task is None:
                del sizes[client]
            else:
                sizes[client] -= task.size
                yield task


def _in_turn(sources: Iterable[Iterator[Unit]]) -> Iterator[Unit]:
    """Yield one of each source, then another of each that has more; sources are begun as late as can be."""
    waiting: deque[Iterator[Unit]] = deque()
    for source in sources:
        for unit in source:
            yield unit
            waiting.append(source)
            break
    while waiting:
        source = waiting.popleft()
        for unit in source:
            yield unit
            waiting.append(source)
            break
