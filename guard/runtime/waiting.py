"""Whose submissions are under way, and how news of them get from the device thread to their event loops.

Every call here is made with the scheduler's lock held.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from guard.runtime.check_task import CheckTask
from guard.runtime.submission import Submission, deliver, deliver_unfinished

__all__ = ["Waiting"]


class Waiting:
    """The submissions that are not finished, by their tasks."""

    def __init__(self) -> None:
        self._submissions: dict[CheckTask, Submission] = {}

    def __bool__(self) -> bool:
        return bool(self._submissions)

    def __contains__(self, task: CheckTask) -> bool:
        return task in self._submissions

    def add(self, submission: Submission) -> None:
        """Have one more wait."""
        self._submissions[submission.task] = submission

    def take(self, task: CheckTask) -> Submission | None:
        """Return whose a task is and forget it; None if nobody waits for it any more."""
        return self._submissions.pop(task, None)

    def tasks(self, *, background_only: bool = False) -> list[CheckTask]:
        """Return what is waited for; of the background alone if so asked."""
        return [task for task in self._submissions if task.background or not background_only]

    def started(self, tasks: Iterable[CheckTask]) -> None:
        """Note of those of which a first row runs now that they wait no longer in line."""
        now = time.monotonic()
        for task in tasks:
            submission = self._submissions[task]
            submission.started = submission.started or now

    def publish(self, news: Iterable[CheckTask]) -> None:
        """Hand news to their event loop, all of a batch in one call; what is finished is forgotten."""
        done = [(task, self._submissions[task]) for task in news if task in self._submissions]
        for task, _ in done:
            if task.error is not None or all(row.done for row in task.rows):
                del self._submissions[task]
        if done:
            loop = done[0][1].rows.get_loop()
            with suppress(RuntimeError):  # the loop is closed: nobody is left to answer
                loop.call_soon_threadsafe(deliver, [submission for _, submission in done])

    def give_up(self, task: CheckTask, error: Exception | None) -> None:
        """Leave a task as far as it came; without its answer it fails with ``error``, if there is one."""
        submission = self._submissions.pop(task)
        if not task.answered:
            task.error = error
        with suppress(RuntimeError):  # the loop is closed: nobody is left to answer
            submission.rows.get_loop().call_soon_threadsafe(deliver_unfinished, submission)
