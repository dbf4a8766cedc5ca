"""The waiting line of a served model: who goes into the next device batch. Pure, no threads.

Theory of operation. Every submitted image is a row that needs one or more rounds: round 0 is
the image itself together with its first overlays, later rounds are more overlays while the
detector is undecided. A device batch is filled until it holds ``max_pairs`` pairs, one round of
one row of each client in turn, beginning with the client served longest ago, and of the client's
submissions in turn (:mod:`guard.runtime.turns`): rows in their last round and rows that just arrived share
one call (continuous batching), and a client who sends many requests, many rows, or rows that cost all
passes, cannot starve the others. A round is never split, and a batch takes at least one, so nobody who
waits for an answer waits for ever. Checks of tasks that were answered first (policy ``monitor``) come after
everybody who still waits, and are given up, and reported so, where the line would overflow: those of the
client that has most of them first. Background tasks (a candidate's shadows) share a call with nobody:
they run when there is nothing else in the line, and are the first to be given up. Tasks that are to be whole
(scores for drift) are decided by all N blends only. A row's evidence depends on
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
from itertools import chain

import numpy as np

from guard.arrays import EntropyBits, Features, Logits
from guard.detection.base import Detector, Evidence
from guard.errors import QueueFullError
from guard.runtime.batch import Batch, Unit
from guard.runtime.check_task import CheckTask
from guard.runtime.measuring import Measured, measure
from guard.runtime.turns import Turns

__all__ = ["Line"]


class Line:
    """Tasks in their turn, and the batches made of them.

    Attributes:
        max_pairs: Pairs a batch is filled up to.
        max_rows: Rows that may wait; a submission beyond that is refused.
        max_client_rows: Rows of one client that may wait for an answer; None for as many as there is room.
    """

    def __init__(
        self, detector: Detector, *, max_pairs: int, max_rows: int, max_client_rows: int | None = None
    ) -> None:
        self.max_pairs = max_pairs
        self.max_rows = max_rows
        self.max_client_rows = max_client_rows
        self._detector = detector
        self._tasks: dict[CheckTask, Turns[CheckTask]] = {}  # which of the three each is in
        self._waiting, self._answered, self._background = (
            Turns[CheckTask](),
            Turns[CheckTask](),
            Turns[CheckTask](),
        )
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
            QueueFullError: If the task does not fit even so, or its client has too many waiting.
        """
        self._refuse_a_flood(task)
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
        self._put(task, self._background if task.background else self._waiting)
        self._rows += len(task.images)
        return evicted

    def discard(self, task: CheckTask) -> None:
        """Take a task out of the line; what is running of it is dropped when it comes back."""
        if task in self._tasks:
            self._tasks.pop(task).remove(task)
            self._rows -= len(task.images)

    def next_batch(self, only: Iterable[CheckTask] | None = None) -> Batch | None:
        """Return the next device batch, or None if nothing waits.

        Args:
            only: Restrict it to these tasks (to find the one that makes a batch fail).
        """
        units: list[Unit] = []
        pairs = 0
        for unit in self._in_turn() if only is None else self._units_of_all(only):
            if units and pairs + unit.pairs > self.max_pairs:
                break
            units.append(unit)
            pairs += unit.pairs
        for unit in units:
            self._tasks[unit.task].served(unit.task)
        return Batch(tuple(units)) if units else None

    def measured(
        self, batch: Batch, logits: Logits, entropies: EntropyBits, features: Features | None = None
    ) -> Measured:
        """Return what a batch's results come to, and change nothing; see :func:`measure`."""
        return measure(self._detector, batch, logits, entropies, features)

    def complete(self, batch: Batch, measured: Measured) -> list[CheckTask]:
        """Take in what was measured of a batch.

        Returns:
            Tasks with news, each once: finished ones (out of the line), and ``answer_first``
            ones whose prediction is now complete.
        """
        news: dict[CheckTask, None] = {}
        for place, (unit, first) in enumerate(zip(batch.units, batch.firsts.tolist(), strict=True)):
            if unit.task in self._tasks:
                self._take_in(unit, place, first, measured)
                news[unit.task] = None
        return [task for task in news if self._settle(task)]

    def fail(self, task: CheckTask, error: BaseException) -> None:
        """Mark a task as failed and take it out of the line."""
        task.error = error
        self.discard(task)

    def _victims(self, task: CheckTask) -> Iterator[CheckTask]:
        """Yield what makes room for a task; nothing does for one in the background."""
        if not task.background:
            yield from self._background.of_the_fullest()
            yield from self._answered.of_the_fullest()

    def _refuse_a_flood(self, task: CheckTask) -> None:
        if self.max_client_rows is None or task.background:
            return
        waiting = self._waiting.size_of(task.client)
        if waiting + task.size > self.max_client_rows:
            raise QueueFullError(
                f"{waiting} rows of this client are waiting and {task.size} more came, expected at most "
                f"{self.max_client_rows} (max_client_rows); wait for answers before sending more"
            )

    def _put(self, task: CheckTask, turns: Turns[CheckTask]) -> None:
        self._tasks[task] = turns
        turns.add(task)

    def _in_turn(self) -> Iterator[Unit]:
        """Yield the next round of one undecided row of each client in turn, then of their next rows."""
        classes = (self._waiting, self._answered) if self._waiting or self._answered else (self._background,)
        return chain.from_iterable(turns.units(self._units_of) for turns in classes)

    def _units_of_all(self, tasks: Iterable[CheckTask]) -> Iterator[Unit]:
        return chain.from_iterable(self._units_of(task) for task in tasks if task in self._tasks)

    def _units_of(self, task: CheckTask) -> Iterator[Unit]:
        return (self._unit(task, index) for index, row in enumerate(task.rows) if not row.done)

    def _unit(self, task: CheckTask, index: int) -> Unit:
        row = task.rows[index]
        alone = not row.predicted and (task.answer_first or not row.wanted)
        overlays = range(0) if alone else self._detector.plan.next_round(row.evidence.passes)
        return Unit(task, index, overlays, with_image=not row.predicted)

    def _take_in(self, unit: Unit, place: int, first: int, measured: Measured) -> None:
        task, row, blends = unit.task, unit.row, first + unit.with_image
        if unit.with_image:
            if task.logits is None:
                task.logits = np.empty((len(task.images), measured.logits.shape[1]), np.float32)
            task.logits[unit.index] = measured.logits[first]
            row.predicted, row.label = True, measured.labels[place]
            row.evidence = Evidence(distance=measured.distances[place])
        if unit.overlays:
            own = measured.blends[blends : blends + len(unit.overlays)]
            row.evidence = self._detector.update(row.evidence, own)
            undecided = task.whole and row.evidence.passes < self._detector.plan.n_overlays
            row.decision = None if undecided else self._detector.decide(row.evidence)

    def _settle(self, task: CheckTask) -> bool:
        if all(row.done for row in task.rows):
            self.discard(task)
            return True
        just_answered = task.answer_first and not task.answered and all(row.predicted for row in task.rows)
        if just_answered:
            task.answered = True
            if not task.background:
                self._tasks[task].remove(task)
                self._put(task, self._answered)
        return just_answered
