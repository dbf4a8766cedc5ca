"""The scheduler, on a device that works only when the test lets it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
from fake_classifier import (
    PATIENCE_S,
    GatedClassifier,
    TableClassifier,
    answers_to,
    full_check,
    numbered_images,
    random_table,
)

from guard.detection.base import Decision, Evidence
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip
from guard.errors import CheckFailedError, QueueFullError, ShuttingDownError
from guard.runtime.check_task import Row
from guard.runtime.rounds import Line
from guard.runtime.scheduler import Scheduler
from guard.runtime.submission import Submission

ROUNDS = (2, 2)
TABLE = random_table(2000, sum(ROUNDS), seed=5)
STRIP = Strip(CheckPlan(ROUNDS), 1.0)
NEVER_SURE = Strip(CheckPlan(ROUNDS), 9.0)
POISON = 13
Start = Callable[..., Scheduler]
Value = TypeVar("Value")


@dataclass
class PoisonedClassifier:
    """Raises for every batch that holds image 13."""

    inner: TableClassifier

    def check(self, images: np.ndarray, *pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if POISON in images:
            raise ArithmeticError("image 13")
        return self.inner.check(images, *pairs)


@dataclass
class ShortClassifier:
    """Gives one row too few."""

    inner: TableClassifier

    def check(self, *arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, entropies = self.inner.check(*arguments)
        return logits[1:], entropies[1:]


@dataclass
class FailsWhenBlended:
    """Answers images, and raises for every batch with a blend."""

    inner: TableClassifier

    def check(
        self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if (overlay_index >= 0).any():
            raise ArithmeticError("a blend")
        return self.inner.check(images, image_index, overlay_index)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start schedulers; at the end, close them and see that their threads are gone."""
    before = set(threading.enumerate())
    running: list[tuple[Scheduler, object]] = []

    def start_one(
        classifier: object, strip: Strip = STRIP, max_batch_pairs: int = 64, max_queue_rows: int = 100
    ) -> Scheduler:
        scheduler = Scheduler(
            classifier,
            strip,
            max_batch_pairs=max_batch_pairs,
            max_queue_rows=max_queue_rows,
            name="fake",
        )
        running.append((scheduler, classifier))
        return scheduler

    yield start_one
    for scheduler, classifier in running:
        if isinstance(classifier, GatedClassifier):
            classifier.let_all_go()
        scheduler.close()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert {name for name in left if name.startswith("device-")} == set()


def gated(table: np.ndarray = TABLE) -> GatedClassifier:
    return GatedClassifier(TableClassifier(table))


def submit(scheduler: Scheduler, numbers: list[int], *, answer_first: bool = False) -> Submission:
    mask = np.ones(len(numbers), np.bool_)
    return scheduler.submit(numbered_images(numbers), mask, answer_first=answer_first)


async def soon(awaited: Awaitable[Value]) -> Value:
    return await asyncio.wait_for(awaited, PATIENCE_S)


async def answer_of(submission: Submission) -> tuple[np.ndarray, list[Row]]:
    return await soon(submission.prediction), await soon(submission.rows)


async def expect_own_answer(submission: Submission, numbers: list[int], strip: Strip = STRIP) -> None:
    logits, rows = await answer_of(submission)
    np.testing.assert_array_equal(logits, answers_to(numbers))
    assert [row.decision for row in rows] == [full_check(strip, TABLE[number]) for number in numbers]


async def test_an_idle_scheduler_answers_at_once(start: Start) -> None:
    scheduler = start(TableClassifier(TABLE))

    await expect_own_answer(submit(scheduler, [4, 7, 1]), [4, 7, 1])

    assert scheduler.rows == 0


async def test_a_request_that_comes_while_the_device_is_busy_shares_the_next_call(start: Start) -> None:
    device = gated()
    scheduler = start(device, NEVER_SURE)
    old = submit(scheduler, [1])
    assert await device.next_call() == [(1, -1), (1, 0), (1, 1)]
    new = submit(scheduler, [2])
    assert (new.started, scheduler.rows) == (None, 2)

    device.let_one_go()

    assert await device.next_call() == [(1, 2), (1, 3), (2, -1), (2, 0), (2, 1)]
    assert new.started is not None
    assert old.started is not None
    assert new.started >= new.submitted >= old.started >= old.submitted
    device.let_all_go()
    await expect_own_answer(old, [1], NEVER_SURE)
    await expect_own_answer(new, [2], NEVER_SURE)


async def test_a_caller_who_leaves_frees_the_queue_and_is_never_run(start: Start) -> None:
    table = TableClassifier(TABLE)
    device = GatedClassifier(table)
    scheduler = start(device, max_queue_rows=3)
    running = submit(scheduler, [1])
    await device.next_call()
    waiting = submit(scheduler, [2, 3])

    scheduler.discard(waiting)

    assert (scheduler.rows, waiting.prediction.cancelled(), waiting.rows.cancelled()) == (1, True, True)
    next_one = submit(scheduler, [4, 5])
    device.let_all_go()
    await expect_own_answer(running, [1])
    await expect_own_answer(next_one, [4, 5])
    assert {number for batch in table.batches for number in batch[0]} == {1, 4, 5}


async def test_a_caller_who_leaves_during_the_call_does_not_disturb_its_neighbour(start: Start) -> None:
    device = gated()
    scheduler = start(device, NEVER_SURE)
    first = submit(scheduler, [9])
    await device.next_call()
    gone, stays = submit(scheduler, [1]), submit(scheduler, [2])
    device.let_one_go()
    await device.next_call()

    scheduler.discard(gone)
    device.let_all_go()

    await expect_own_answer(stays, [2], NEVER_SURE)
    await expect_own_answer(first, [9], NEVER_SURE)
    assert (gone.prediction.cancelled(), scheduler.rows) == (True, 0)


async def test_only_the_poisonous_submission_fails_and_the_device_goes_on(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    device = GatedClassifier(PoisonedClassifier(TableClassifier(TABLE)))
    scheduler = start(device)
    first = submit(scheduler, [1])
    await device.next_call()
    older, poisonous, newer = submit(scheduler, [2]), submit(scheduler, [3, POISON]), submit(scheduler, [4])
    device.let_all_go()

    with pytest.raises(CheckFailedError) as failed:
        await answer_of(poisonous)

    assert str(failed.value) == (
        "model 'fake' failed on this input (ArithmeticError); the server log has the details: send another "
        "input, or ask the operator to look at the model"
    )
    with pytest.raises(CheckFailedError):
        await soon(poisonous.rows)
    for submission, numbers in ((first, [1]), (older, [2]), (newer, [4])):
        await expect_own_answer(submission, numbers)
    assert scheduler.rows == 0
    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == "the model failed on a submission of 2 rows"
    assert "ArithmeticError: image 13" in caplog.text
    await expect_own_answer(submit(scheduler, [5]), [5])


async def test_a_model_that_answers_too_few_rows_fails_the_submission_and_not_the_device(
    start: Start,
) -> None:
    scheduler = start(ShortClassifier(TableClassifier(TABLE)))

    for _ in range(2):
        with pytest.raises(CheckFailedError, match=r"failed on this input \(ValueError\)"):
            await answer_of(submit(scheduler, [1]))

    assert scheduler.rows == 0


async def test_nobody_is_warned_of_a_failure_that_nobody_awaits(start: Start) -> None:
    warned: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: warned.append(context["message"]))
    scheduler = start(PoisonedClassifier(TableClassifier(TABLE)))
    poisonous = submit(scheduler, [POISON])
    await expect_own_answer(submit(scheduler, [1]), [1])
    assert (poisonous.prediction.done(), poisonous.rows.done()) == (True, True)

    del poisonous
    gc.collect()

    assert warned == []


async def test_a_prediction_answered_first_comes_before_its_check(start: Start) -> None:
    device = gated()
    scheduler = start(device)
    submission = submit(scheduler, [6, 8], answer_first=True)
    assert await device.next_call() == [(6, -1), (8, -1)]
    device.let_one_go()

    np.testing.assert_array_equal(await soon(submission.prediction), answers_to([6, 8]))

    assert (submission.rows.done(), scheduler.rows) == (False, 2)
    device.let_all_go()
    await expect_own_answer(submission, [6, 8])
    assert scheduler.rows == 0


async def test_a_prediction_that_was_there_is_given_even_if_the_check_then_failed(start: Start) -> None:
    scheduler = start(FailsWhenBlended(TableClassifier(TABLE)))
    submission = submit(scheduler, [6, 8], answer_first=True)

    scheduler.close()  # blocks this loop, so that the news of both calls arrive together

    np.testing.assert_array_equal(await soon(submission.prediction), answers_to([6, 8]))
    with pytest.raises(CheckFailedError, match=r"\(ArithmeticError\)"):
        await soon(submission.rows)


async def test_a_check_that_must_make_room_is_given_up_undecided(start: Start) -> None:
    device = gated()
    scheduler = start(device, NEVER_SURE, max_queue_rows=2)
    answered = submit(scheduler, [6, 8], answer_first=True)
    await device.next_call()
    device.let_one_go()
    await soon(answered.prediction)

    new = submit(scheduler, [1])

    assert [row.decision for row in await soon(answered.rows)] == [None, None]
    device.let_all_go()
    await expect_own_answer(new, [1], NEVER_SURE)


async def test_a_full_queue_refuses_and_what_waits_is_still_answered(start: Start) -> None:
    device = gated()
    scheduler = start(device, max_queue_rows=2)
    held = submit(scheduler, [1, 2])

    with pytest.raises(QueueFullError) as refused:
        submit(scheduler, [3])

    assert str(refused.value) == (
        "2 rows are waiting and 1 more came, expected at most 2 (max_queue_rows); retry later or add capacity"
    )
    assert scheduler.max_queue_rows == 2
    device.let_all_go()
    await expect_own_answer(held, [1, 2])


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(start: Start) -> None:
    device = gated()
    scheduler = start(device, NEVER_SURE)
    accepted = [submit(scheduler, [number]) for number in range(5)]
    monitored = submit(scheduler, [5], answer_first=True)
    await device.next_call()
    closing = threading.Thread(target=scheduler.close)

    closing.start()
    await refusal(scheduler)
    device.let_all_go()
    await asyncio.to_thread(closing.join)

    for number, submission in enumerate(accepted):
        await expect_own_answer(submission, [number], NEVER_SURE)
    await expect_own_answer(monitored, [5], NEVER_SURE)
    with pytest.raises(ShuttingDownError) as refused:
        submit(scheduler, [6])
    assert str(refused.value) == "model 'fake' is being closed; retry on another replica"


async def test_at_the_end_of_its_time_closing_gives_up_what_is_left(start: Start) -> None:
    device = gated()
    scheduler = start(device, NEVER_SURE, max_batch_pairs=1)
    monitored = submit(scheduler, [1], answer_first=True)
    await device.next_call()
    device.let_one_go()
    np.testing.assert_array_equal(await soon(monitored.prediction), answers_to([1]))
    await device.next_call()
    waiting = submit(scheduler, [2])
    early = submit(scheduler, [3], answer_first=True)

    closing = asyncio.create_task(asyncio.to_thread(scheduler.close, 0.05))

    [row] = await soon(monitored.rows)
    assert row.decision is None
    for future in (waiting.prediction, waiting.rows, early.prediction, early.rows):
        with pytest.raises(ShuttingDownError, match="'fake' was closed before it came to this; retry on"):
            await soon(future)
    assert scheduler.rows == 0
    await soon(closing)  # though the device is still inside its call
    await soon(asyncio.to_thread(scheduler.close))


class BrokenStrip(Strip):
    """A detector with a defect: raises where the test says so, as often as it is asked."""

    broken = True

    def decide(self, evidence: Evidence) -> Decision | None:
        if self.broken:
            raise ZeroDivisionError("a defect")
        return super().decide(evidence)


async def test_a_defect_after_the_call_fails_its_batch_and_the_thread_lives_on(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    strip = BrokenStrip(CheckPlan(ROUNDS), 1.0)
    scheduler = start(TableClassifier(TABLE), strip)

    with pytest.raises(CheckFailedError, match="could not be run because of a defect in the guard"):
        await soon(submit(scheduler, [1]).rows)

    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    object.__setattr__(strip, "broken", False)
    await expect_own_answer(submit(scheduler, [2]), [2])
    assert scheduler.rows == 0


async def test_a_defect_before_the_call_fails_all_that_wait_and_the_thread_lives_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start(TableClassifier(TABLE))
    with monkeypatch.context() as defect:
        defect.setattr(Line, "next_batch", raise_a_defect)
        held = [submit(scheduler, [number]) for number in range(3)]
        for submission in held:
            for future in (submission.prediction, submission.rows):
                with pytest.raises(CheckFailedError, match="defect in the guard"):
                    await soon(future)

    await expect_own_answer(submit(scheduler, [2]), [2])
    assert scheduler.rows == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_that_ended_all_the_same_leaves_nobody_waiting(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start(TableClassifier(TABLE))
    monkeypatch.setattr(Line, "next_batch", leave)

    with pytest.raises(CheckFailedError):
        await soon(submit(scheduler, [1]).rows)

    with pytest.raises(ShuttingDownError):
        submit(scheduler, [2])


def raise_a_defect(line: Line, only: object = None) -> None:
    raise ZeroDivisionError("a defect")


def leave(line: Line, only: object = None) -> None:
    raise SystemExit


async def test_a_report_that_fails_does_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    def on_batch(pairs: int, seconds: float) -> None:
        raise ZeroDivisionError("a defect")

    scheduler = Scheduler(
        TableClassifier(TABLE), STRIP, max_batch_pairs=64, max_queue_rows=10, on_batch=on_batch
    )

    await expect_own_answer(submit(scheduler, [1]), [1])
    await asyncio.to_thread(scheduler.close)

    assert "could not be reported" in caplog.text


async def refusal(scheduler: Scheduler) -> None:
    """Wait until the scheduler refuses, taking back what it still accepts."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                scheduler.discard(submit(scheduler, [99]))
            except ShuttingDownError:
                return
            await asyncio.sleep(0)


async def test_a_thousand_small_submissions_get_a_thousand_own_answers(start: Start) -> None:
    scheduler = start(TableClassifier(TABLE), max_batch_pairs=512, max_queue_rows=1000)
    submissions = [submit(scheduler, [number]) for number in range(1000)]

    await soon(asyncio.gather(*(submission.rows for submission in submissions)))

    for number, submission in enumerate(submissions):
        await expect_own_answer(submission, [number])
    assert scheduler.rows == 0


async def test_no_future_is_left_pending_whatever_happened_to_its_submission(start: Start) -> None:
    device = GatedClassifier(PoisonedClassifier(TableClassifier(TABLE)))
    scheduler = start(device, NEVER_SURE, max_batch_pairs=7, max_queue_rows=64)
    submissions = [
        submit(scheduler, [number, number + 1], answer_first=number % 3 == 0) for number in range(20)
    ]
    for number in (2, 7, 16):
        scheduler.discard(submissions[number])
    device.let_all_go()
    await asyncio.to_thread(scheduler.close)

    ends = await asyncio.gather(
        *(future for one in submissions for future in (one.prediction, one.rows)), return_exceptions=True
    )

    kinds = [type(end).__name__ for end in ends[1::2]]
    assert [kinds[number] for number in (2, 7, 16)] == ["CancelledError"] * 3
    assert [kinds[number] for number in (12, 13)] == ["CheckFailedError"] * 2
    assert kinds.count("list") == 15
    decisions = {row.decision for rows in ends[1::2] if isinstance(rows, list) for row in rows}
    assert decisions == {Decision.SUSPICIOUS}


async def test_each_device_call_is_told_with_its_pairs_and_seconds() -> None:
    told: list[tuple[int, float]] = []
    scheduler = Scheduler(
        TableClassifier(TABLE),
        NEVER_SURE,
        max_batch_pairs=64,
        max_queue_rows=10,
        on_batch=lambda pairs, seconds: told.append((pairs, seconds)),
    )

    await expect_own_answer(submit(scheduler, [1, 2]), [1, 2], NEVER_SURE)
    await asyncio.to_thread(scheduler.close)

    assert [pairs for pairs, _ in told] == [6, 4]
    assert all(0 <= seconds < PATIENCE_S for _, seconds in told)


def test_an_event_loop_that_ended_does_not_take_the_device_thread_with_it(start: Start) -> None:
    device = gated()
    scheduler = start(device)

    async def submit_and_leave() -> None:
        submit(scheduler, [1])
        await device.next_call()

    asyncio.run(submit_and_leave())
    device.let_all_go()

    async def submit_and_stay() -> None:
        await expect_own_answer(submit(scheduler, [2]), [2])

    asyncio.run(submit_and_stay())
    scheduler.close(PATIENCE_S)
    assert scheduler.rows == 0


async def test_nothing_is_kept_of_a_submission_whose_caller_left(start: Start) -> None:
    device = gated()
    scheduler = start(device)
    busy = submit(scheduler, [0])
    await device.next_call()
    left = submit(scheduler, [1])
    kept = weakref.ref(left.task)

    scheduler.discard(left)
    del left
    device.let_all_go()
    await soon(busy.rows)
    gc.collect()

    assert kept() is None


async def test_closing_waits_for_what_was_accepted_and_not_for_the_background(start: Start) -> None:
    device = gated()
    scheduler = start(device)
    behind = scheduler.submit(numbered_images([1, 2]), np.ones(2, np.bool_), background=True, whole=True)
    await device.next_call()
    waiting = submit(scheduler, [3])
    closing = asyncio.create_task(asyncio.to_thread(scheduler.close))

    given_up = await asyncio.wait_for(behind.rows, PATIENCE_S)
    device.let_all_go()
    await closing

    assert [row.decision for row in given_up] == [None, None]
    assert [row.decision for row in await waiting.rows] != [None]
