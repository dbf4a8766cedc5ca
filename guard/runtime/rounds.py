"""The waiting line of a served model: who goes into the next device batch. Pure, no threads.

Theory of operation. Every submitted image is a row that needs one or more rounds: round 0 is
the image itself together with its first overlays, later rounds are more overlays while the
detector is undecided. A device batch is filled until it holds ``max_pairs`` pairs, one round of
one row of each submission in turn, beginning with the submission served longest ago: rows in
their last round and rows that just arrived share one call (continuous batching), and a caller who
sends many rows, or rows that cost all passes, cannot starve the others. A round is never split,
and a batch takes at least one, so nobody who waits for an answer waits for ever. Checks of tasks that were
answered first (policy ``monitor``) come after everybody who still waits, and are given up, and
reported so, where the line would overflow. Background tasks (a candidate's shadows) share a call with nobody:
they run when there is nothing else in the line, and are the first to be given up. A row's evidence depends on
its own blends only, never on which batch they ran in.

::

    submit ─► line: [task, task, …] ──next_batch()──► Batch ──device──► complete() ─► [finished tasks]
                 ▲                                                          │
                 └───────────── rows still undecided stay in line ──────────┘

A task leaves the line when all its rows are decided, when it fails, or when it is discarded
(the caller is gone). :mod:`guard.runtime.scheduler` puts the lock, the thread and the event
loop around this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from guard.arrays import EntropyBits, Images, Logits, PairIndex
from guard.detection.strip import Decision, Evidence, Strip
from guard.errors import QueueFullError

__all__ = ["Batch", "CheckTask", "Line", "Row"]


@dataclass
class Row:
    """What is known of one row.

    Attributes:
        wanted: Whether the row is checked; if not, it only gets its prediction.
        predicted: Whether its logits are there.
        decision: The detector's decision; stays None where no check was wanted or finished.
    """

    wanted: bool
    predicted: bool = False
    evidence: Evidence = field(default_factory=Evidence)
    decision: Decision | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to run for this row."""
        return self.predicted and (not self.wanted or self.decision is not None)


@dataclass(eq=False)
class CheckTask:
    """One submission: images that arrived together and are answered together.

    Attributes:
        images: Rows in the model's input space.
        rows: State of each row.
        answer_first: Whether the prediction is wanted before the check (policy ``monitor``):
            round 0 is then the image alone.
        background: Whether it only runs while nothing else waits, and makes room for everything else.
        logits: The model's output for each row, filled in by round 0.
        answered: Whether an ``answer_first`` task's prediction is complete.
        error: Why the task failed, if it did.
    """

    images: Images
    rows: list[Row]
    answer_first: bool = False
    background: bool = False
    logits: np.ndarray | None = None
    answered: bool = False
    error: BaseException | None = None

    @classmethod
    def of(
        cls,
        images: Images,
        to_check: Bool[np.ndarray, " n"],
        *,
        answer_first: bool = False,
        background: bool = False,
    ) -> CheckTask:
        """Return a task for these images; rows outside ``to_check`` only get their prediction."""
        return cls(images, [Row(bool(wanted)) for wanted in to_check], answer_first, background)


@dataclass(frozen=True)
class _Unit:
    """One round of one row: where it sits in the batch."""

    task: CheckTask
    index: int
    overlays: range
    with_image: bool

    @property
    def pairs(self) -> int:
        return len(self.overlays) + self.with_image

    @property
    def overlay_index(self) -> PairIndex:
        return np.array([*([-1] if self.with_image else []), *self.overlays], np.int64)


@dataclass(frozen=True)
class Batch:
    """One device call: images of any tasks and a ragged list of pairs over them."""

    units: tuple[_Unit, ...]
    images: Images
    image_index: PairIndex
    overlay_index: PairIndex

    @property
    def tasks(self) -> list[CheckTask]:
        """The tasks in the batch, in their turn, each once."""
        return list(dict.fromkeys(unit.task for unit in self.units))


class Line:
    """Tasks in their turn, and the batches made of them.

    Attributes:
        max_pairs: Pairs a batch is filled up to.
        max_rows: Rows that may wait; a submission beyond that is refused.
    """

    def __init__(self, strip: Strip, *, max_pairs: int, max_rows: int) -> None:
        self.max_pairs = max_pairs
        self.max_rows = max_rows
        self._strip = strip
        self._tasks: dict[CheckTask, None] = {}
        self._rows = 0

    @property
    def rows(self) -> int:
        """Rows waiting or running."""
        return self._rows

    def add(self, task: CheckTask) -> list[CheckTask]:
        """Put a task at the end of the line.

        Returns:
            Tasks in the background, and then tasks already answered (``answer_first``), that had to make
            room; they are out of the line, their remaining rows undecided.

        Raises:
            QueueFullError: If the task does not fit even so.
        """
        room = self.max_rows - self._rows - len(task.images)
        evicted: list[CheckTask] = []
        victims = self._victims(task)
        while room < 0 and (victim := next(victims, None)) is not None:
            room += len(victim.images)
            evicted.append(victim)
        if room < 0:
            raise QueueFullError(
                f"{self._rows} rows are waiting and {len(task.images)} more came, expected at most "
                f"{self.max_rows} (max_queue_rows); retry later or add capacity"
            )
        for victim in evicted:
            self.discard(victim)
        self._tasks[task] = None
        self._rows += len(task.images)
        return evicted

    def discard(self, task: CheckTask) -> None:
        """Take a task out of the line; what is running of it is dropped when it comes back."""
        if task in self._tasks:
            del self._tasks[task]
            self._rows -= len(task.images)

    def next_batch(self, only: Iterable[CheckTask] | None = None) -> Batch | None:
        """Return the next device batch, or None if nothing waits.

        Args:
            only: Restrict it to these tasks (to find the one that makes a batch fail).
        """
        units: list[_Unit] = []
        pairs = 0
        for unit in self._units(self._in_turn() if only is None else only):
            if units and pairs + unit.pairs > self.max_pairs:
                break
            units.append(unit)
            pairs += unit.pairs
        for served in dict.fromkeys(unit.task for unit in units):
            self._tasks[served] = self._tasks.pop(served)  # to the end of the line
        return self._batch(tuple(units)) if units else None

    def complete(self, batch: Batch, logits: Logits, entropies: EntropyBits) -> list[CheckTask]:
        """Take in a batch's results.

        Returns:
            Tasks with news, each once: finished ones (out of the line), and ``answer_first``
            ones whose prediction is now complete.
        """
        news: dict[CheckTask, None] = {}
        start = 0
        for unit in batch.units:
            stop = start + unit.pairs
            if unit.task in self._tasks:
                self._take_in(unit, logits[start:stop], entropies[start:stop])
                news[unit.task] = None
            start = stop
        return [task for task in news if self._settle(task)]

    def fail(self, task: CheckTask, error: BaseException) -> None:
        """Mark a task as failed and take it out of the line."""
        task.error = error
        self.discard(task)

    def _victims(self, task: CheckTask) -> Iterator[CheckTask]:
        """Yield what makes room for a task; nothing does for one in the background."""
        if not task.background:
            yield from (waiting for waiting in self._tasks if waiting.background)
            yield from (waiting for waiting in self._tasks if waiting.answered and not waiting.background)

    def _in_turn(self) -> Iterator[CheckTask]:
        waiting = [task for task in self._tasks if not task.background] or list(self._tasks)
        yield from (task for task in waiting if not task.answered)
        yield from (task for task in waiting if task.answered)

    def _units(self, tasks: Iterable[CheckTask]) -> Iterator[_Unit]:
        """Yield the next round of one undecided row of each task in turn, then of their next rows."""
        waiting = [self._units_of(task) for task in tasks if task in self._tasks]
        while waiting:
            nexts = [(units, next(units, None)) for units in waiting]
            yield from (unit for _, unit in nexts if unit is not None)
            waiting = [units for units, unit in nexts if unit is not None]

    def _units_of(self, task: CheckTask) -> Iterator[_Unit]:
        return (self._unit(task, index) for index, row in enumerate(task.rows) if not row.done)

    def _unit(self, task: CheckTask, index: int) -> _Unit:
        row = task.rows[index]
        alone = not row.predicted and (task.answer_first or not row.wanted)
        overlays = range(0) if alone else self._strip.plan.next_round(row.evidence.passes)
        return _Unit(task, index, overlays, with_image=not row.predicted)

    def _batch(self, units: tuple[_Unit, ...]) -> Batch:
        image_index = np.repeat(np.arange(len(units), dtype=np.int64), [unit.pairs for unit in units])
        overlay_index = np.concatenate([unit.overlay_index for unit in units])
        images = np.stack([unit.task.images[unit.index] for unit in units])
        return Batch(units, images, image_index, overlay_index)

    def _take_in(self, unit: _Unit, logits: Logits, entropies: EntropyBits) -> None:
        task, row = unit.task, unit.task.rows[unit.index]
        if unit.with_image:
            if task.logits is None:
                task.logits = np.empty((len(task.images), logits.shape[1]), np.float32)
            task.logits[unit.index] = logits[0]
            row.predicted = True
        if unit.overlays:
            row.evidence = self._strip.update(row.evidence, entropies[int(unit.with_image) :])
            row.decision = self._strip.decide(row.evidence)

    def _settle(self, task: CheckTask) -> bool:
        if all(row.done for row in task.rows):
            self.discard(task)
            return True
        just_answered = task.answer_first and not task.answered and all(row.predicted for row in task.rows)
        task.answered = task.answered or just_answered
        return just_answered
