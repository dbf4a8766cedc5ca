"""Run the waiting line on a device, off the event loop.

Theory of operation. One thread owns the device of one model. The event loop puts a task into
the :class:`~guard.runtime.rounds.Line` under a lock and awaits futures; the thread takes a
batch under the same lock, runs it without the lock, and hands all results of that batch back to
the loop in one call.

::

    event loop                          │ device thread
    submit() ─ lock ─ line.add          │ wait until there is work
    await prediction / outcome          │ lock: batch = line.next_batch()
        ▲                               │ classifier.check(batch)            (no lock held)
        └─ call_soon_threadsafe ────────│ line.measured(batch)               (no lock held)
        │                               │ lock: news = line.complete(batch)
    cancelled? lock: line.discard       │

Because the batch is formed when the device becomes free, and not by a timer, an idle server
answers at once and a busy one fills its batches by itself.

A batch that raises is run again, one submission at a time, so that one poisonous input cannot
take its neighbours with it; only the submission that fails alone is failed. Where a model server could not
be asked, no input is to blame: all submissions of the batch fail with that. Whatever else goes wrong
on the device thread fails the submissions it was busy with, and the thread lives on: if it ended,
every later caller would wait in vain.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Bool

from guard.arrays import Images
from guard.detection.base import Detector
from guard.errors import CheckFailedError, ShuttingDownError, UnavailableError
from guard.runtime.batch import Batch
from guard.runtime.check_task import CheckTask
from guard.runtime.checked_classifier import CheckedClassifier, run_pairs
from guard.runtime.rounds import Line
from guard.runtime.submission import Submission, resolve
from guard.runtime.waiting import Waiting

__all__ = ["CheckedClassifier", "Scheduler"]

_LAST_CALL_S: Final = 1.0  # for a device call that runs when all else has been given up

_log = logging.getLogger(__name__)


class Scheduler:
    """Batches the checks of one model across requests.

    Args:
        classifier: Called from the device thread only.
        detector: Decides of each input.
        max_batch_pairs: Pairs a device batch is filled up to.
        max_queue_rows: Rows that may wait or run; more are refused.
        max_client_rows: Rows of one client that may wait for an answer; None for as many as there is room.
        on_batch: Told the pairs and seconds of each device call, from the device thread; what it raises
            is logged.
        name: For the thread and the log.
    """

    def __init__(
        self,
        classifier: CheckedClassifier,
        detector: Detector,
        *,
        max_batch_pairs: int,
        max_queue_rows: int,
        max_client_rows: int | None = None,
        on_batch: Callable[[int, float], None] = lambda _pairs, _seconds: None,
        name: str = "model",
    ) -> None:
        self._classifier = classifier
        self._with_layers = detector.layers is not None
        self._new_line = partial(
            Line,
            detector,
            max_pairs=max_batch_pairs,
            max_rows=max_queue_rows,
            max_client_rows=max_client_rows,
        )
        self._line = self._new_line()
        self._on_batch = on_batch
        self._name = name
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._closing = False
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name=f"device-{name}", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Rows waiting or running."""
        return self._line.rows

    @property
    def max_queue_rows(self) -> int:
        """Rows that may wait or run."""
        return self._line.max_rows

    def submit(
        self,
        images: Images,
        to_check: Bool[np.ndarray, " n"],
        *,
        answer_first: bool = False,
        background: bool = False,
        whole: bool = False,
        client: str = "",
    ) -> Submission:
        """Put images in line; call it on the event loop.

        Args:
            images: At least one row in the model's input space.
            to_check: Which rows are checked; the others only get their prediction.
            answer_first: Resolve the prediction before the check runs.
            background: Run while nothing else waits; what had to make room for others resolves ``rows``
                alone, with some undecided.
            whole: Decide by all N blends only, so that scores are exact.
            client: Who sent them; clients take turns.

        Raises:
            QueueFullError: If too many rows are waiting, of all or of that client.
            ShuttingDownError: If the scheduler is closing.
        """
        loop = asyncio.get_running_loop()
        task = CheckTask.of(
            images, to_check, answer_first=answer_first, background=background, whole=whole, client=client
        )
        submission = Submission(task, loop.create_future(), loop.create_future())
        with self._changed:
            if self._closing:
                raise ShuttingDownError(f"model {self._name!r} is being closed; retry on another replica")
            evicted = [self._waiting.take(old) for old in self._line.add(task)]
            self._waiting.add(submission)
            self._changed.notify()
        for old in filter(None, evicted):
            resolve(old.rows, old.task.rows)
        return submission

    def discard(self, submission: Submission) -> None:
        """Forget a submission whose caller is gone; its futures are cancelled."""
        with self._changed:
            self._line.discard(submission.task)
            self._waiting.take(submission.task)
        submission.prediction.cancel()
        submission.rows.cancel()

    def close(self, drain_timeout_s: float | None = None) -> None:
        """Refuse new work, finish what was accepted, and end the device thread (blocks).

        Args:
            drain_timeout_s: Longest wait, None for none. What is left then is given up, as what runs in the
                background is at once: checks of what was answered first stay undecided, all else fails with
                ShuttingDownError.
        """
        with self._changed:
            self._closing = True
            self._give_up()
            self._changed.notify()
        self._thread.join(0.0 if self._given_up else drain_timeout_s)
        if self._thread.is_alive():
            with self._changed:
                self._given_up = True
                self._give_up(
                    ShuttingDownError(
                        f"model {self._name!r} was closed before it came to this; retry on another replica"
                    )
                )
            self._thread.join(_LAST_CALL_S)

    def _run(self) -> None:
        try:
            while self._step():
                pass
        finally:
            with self._changed:
                self._closing = True  # nobody is left to do what is submitted now
                self._give_up(self._defect())

    def _step(self) -> bool:
        """Run a batch; return whether there may be another."""
        batch: Batch | None = None
        try:
            batch = self._wait_for_batch()
            if batch is None:
                return False
            error = self._try(batch)
            if error is not None:
                self._isolate(batch, error)
        except Exception:  # noqa: BLE001 - whatever it is must not end the thread
            _log.exception("the device thread of model %r met a defect", self._name)
            self._recover(batch)
        return True

    def _recover(self, batch: Batch | None) -> None:
        """Fail the submissions of a batch or, where no batch could be formed, all there are."""
        with self._changed:
            if batch is None:
                self._give_up(self._defect())
                self._line = self._new_line()
                return
            for task in batch.tasks:
                if task in self._waiting:
                    self._line.fail(task, self._defect())
                    self._waiting.publish([task])

    def _defect(self) -> CheckFailedError:
        return CheckFailedError(
            f"model {self._name!r} could not be run because of a defect in the guard; the server log has the "
            f"details: retry, or ask the operator to look at it"
        )

    def _give_up(self, error: Exception | None = None) -> None:
        """Leave checks undecided, fail the others; without an error, of the background alone; lock held."""
        for task in self._waiting.tasks(background_only=error is None):
            self._line.discard(task)
            self._waiting.give_up(task, error)

    def _wait_for_batch(self) -> Batch | None:
        with self._changed:
            while not self._waiting or (batch := self._line.next_batch()) is None:
                if self._closing:
                    return None
                self._changed.wait()
            self._waiting.started(batch.tasks)
            return batch

    def _try(self, batch: Batch) -> Exception | None:
        start = time.perf_counter()
        try:
            pairs = (batch.images, batch.image_index, batch.overlay_index)
            found = run_pairs(self._classifier, *pairs, with_layers=self._with_layers)
            batch.check_sizes(*found)
        except Exception as error:  # noqa: BLE001 - whatever a model raises must not end the thread
            return error
        self._tell(len(batch.image_index), time.perf_counter() - start)
        measured = self._line.measured(batch, *found)
        with self._changed:
            self._waiting.publish(self._line.complete(batch, measured))
        return None

    def _tell(self, pairs: int, seconds: float) -> None:
        try:
            self._on_batch(pairs, seconds)
        except Exception:  # noqa: BLE001 - it only watches
            _log.exception("a device call of model %r could not be reported", self._name)

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """Run the submissions of a failed batch one by one; fail those that fail alone."""
        nobodys_fault = isinstance(error, UnavailableError)
        for task in batch.tasks:
            alone: Exception | None = error
            if len(batch.tasks) > 1 and not nobodys_fault:
                with self._changed:
                    part = self._line.next_batch(only=[task])
                alone = self._try(part) if part is not None else None
            if alone is not None:
                self._fail(task, alone)

    def _fail(self, task: CheckTask, error: Exception) -> None:
        failure = error
        if not isinstance(error, UnavailableError):
            _log.error("the model failed on a submission of %d rows", len(task.images), exc_info=error)
            failure = CheckFailedError(
                f"model {self._name!r} failed on this input ({type(error).__name__}); the server log has the "
                f"details: send another input, or ask the operator to look at the model"
            )
        with self._changed:
            self._line.fail(task, failure)
            self._waiting.publish([task])
