"""What a caller of the scheduler waits for, and how news reach it. All of it runs on the event loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from guard.runtime.check_task import CheckTask, Row

Value = TypeVar("Value")

__all__ = ["Submission", "deliver", "deliver_unfinished", "resolve"]


@dataclass(eq=False)
class Submission:
    """The futures of one submission, to be awaited on the loop that submitted it.

    Attributes:
        prediction: Resolves to the model's output, float32 (n, k), once every row has it.
        rows: Resolves to the rows' states once every check is finished or given up.
        started: When the first batch with a row of it began, seconds of the monotonic clock;
            None while it waits.
    """

    task: CheckTask
    prediction: asyncio.Future[np.ndarray]
    rows: asyncio.Future[list[Row]]
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None


def deliver(submissions: list[Submission]) -> None:
    """Resolve what has become known of each submission; call it on their event loop."""
    for submission in submissions:
        task = submission.task
        # First the prediction: an answer that was there before its check failed is still an answer.
        if task.logits is not None and all(row.predicted for row in task.rows):
            resolve(submission.prediction, task.logits)
        if task.error is not None:
            _refuse(submission.prediction, task.error)
            _refuse(submission.rows, task.error)
        elif all(row.done for row in task.rows):
            resolve(submission.rows, task.rows)


def deliver_unfinished(submission: Submission) -> None:
    """Resolve a submission whose check was given up, with its rows as far as they came."""
    deliver([submission])
    resolve(submission.rows, submission.task.rows)


def resolve(future: asyncio.Future[Value], value: Value) -> None:
    """Set a result, unless the caller is gone or already has one."""
    if not future.done():
        future.set_result(value)


def _refuse(future: asyncio.Future[np.ndarray] | asyncio.Future[list[Row]], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: whoever awaits it still gets it, nobody is warned if none does
