"""The waiting line, driven without a thread: every row gets its own answer, whatever shares its batches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, zip_longest

import numpy as np
import pytest
from fake_classifier import TableClassifier, answers_to, full_check, numbered_images, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guard.detection.base import Decision, Evidence
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip
from guard.errors import QueueFullError
from guard.runtime.batch import Batch
from guard.runtime.check_task import CheckTask
from guard.runtime.rounds import Line

ROUNDS = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
BOUNDARY = st.floats(0.0, 2.1)
MASK = st.lists(st.booleans(), min_size=1, max_size=5)
IMAGES = 200


def strip_of(rounds: tuple[int, ...] = (2, 2, 4), boundary: float = 1.0) -> Strip:
    return Strip(CheckPlan(rounds), boundary)


def line_of(strip: Strip, max_pairs: int = 64, max_rows: int = 100) -> Line:
    return Line(strip, max_pairs=max_pairs, max_rows=max_rows)


def task_of(
    numbers: list[int], mask: list[bool] | None = None, *, answer_first: bool = False, client: str = ""
) -> CheckTask:
    to_check = np.array(mask or [True] * len(numbers))
    return CheckTask.of(numbered_images(numbers), to_check, answer_first=answer_first, client=client)


def run(line: Line, classifier: TableClassifier) -> list[CheckTask]:
    """Run one batch and return its news."""
    batch = line.next_batch()
    assert batch is not None
    return complete(line, batch, classifier)


def complete(line: Line, batch: Batch, classifier: TableClassifier) -> list[CheckTask]:
    found = classifier.check(batch.images, batch.image_index, batch.overlay_index)
    return line.complete(batch, line.measured(batch, *found))


def run_to_the_end(line: Line, classifier: TableClassifier) -> list[CheckTask]:
    news: list[CheckTask] = []
    while line.rows:
        news += run(line, classifier)
    return news


def expect_own_answers(task: CheckTask, numbers: list[int], strip: Strip, table: np.ndarray) -> None:
    """Every row has its own image's logits, evidence and verdict, bit for bit."""
    assert task.logits is not None
    np.testing.assert_array_equal(task.logits, answers_to(numbers))
    for row, number in zip(task.rows, numbers, strict=True):
        expected = strip.update(Evidence(), table[number, : row.evidence.passes])
        assert row.evidence == expected
        assert row.decision is (full_check(strip, table[number]) if row.wanted else None)
        if not row.wanted:
            assert row.evidence.passes == 0


def alternating(lists: Iterable[list[tuple[CheckTask, int]]]) -> list[tuple[CheckTask, int]]:
    """Return the first of each, then the second of each that has one, and so on."""
    return [unit for some in zip_longest(*lists) for unit in some if unit is not None]


class LineMachine(RuleBasedStateMachine):
    """Submissions, batches and callers who leave, in any order; a plain list is the model."""

    @initialize(
        rounds=ROUNDS,
        boundary=BOUNDARY,
        max_pairs=st.integers(1, 16),
        max_rows=st.integers(1, 16),
        seed=st.integers(0, 99),
    )
    def open_the_line(
        self, rounds: tuple[int, ...], boundary: float, max_pairs: int, max_rows: int, seed: int
    ) -> None:
        self.strip = strip_of(rounds, boundary)
        self.table = random_table(IMAGES, sum(rounds), seed)
        self.classifier = TableClassifier(self.table)
        self.line = line_of(self.strip, max_pairs, max_rows)
        self.numbers: dict[CheckTask, list[int]] = {}
        self.waiting: list[CheckTask] = []
        self.clock = count()
        self.turn_of: dict[object, int] = {}
        self.answered: list[CheckTask] = []
        self.running: Batch | None = None
        self.next_number = count()

    @rule(mask=MASK, answer_first=st.booleans(), client=st.sampled_from("abc"))
    def submit(self, mask: list[bool], answer_first: bool, client: str) -> None:
        numbers = [next(self.next_number) % IMAGES for _ in mask]
        task = task_of(numbers, mask, answer_first=answer_first, client=client)
        evicted = self.who_must_go(len(mask))
        before = self.line.rows
        if evicted is None:
            with pytest.raises(QueueFullError) as refused:
                self.line.add(task)
            assert str(refused.value) == (
                f"{before} rows are waiting and {len(mask)} more came, expected at most "
                f"{self.line.max_rows} (max_queue_rows); retry later or add capacity"
            )
            return
        assert self.line.add(task) == evicted
        self.leave(evicted)
        self.come(task)
        self.numbers[task] = numbers

    def come(self, task: CheckTask) -> None:
        """Note that a task has come to those who wait, or to those who were answered, as the last of them."""
        if task not in self.waiting:
            self.waiting.append(task)
        self.turn_of[task] = next(self.clock)
        answered = task in self.answered
        beside = [old for old in self.waiting if old.client == task.client]
        if [old in self.answered for old in beside].count(answered) == 1:
            self.turn_of[task.client, answered] = next(self.clock)

    def leave(self, gone: list[CheckTask]) -> None:
        self.waiting = [old for old in self.waiting if old not in gone]

    @precondition(lambda self: self.running is None)
    @rule()
    def begin_a_batch(self) -> None:
        undone = self.undone_in_turn()
        self.running = self.line.next_batch()
        if self.running is None:
            assert undone == []
            return
        units = self.running.units
        assert [(unit.task, unit.index) for unit in units] == undone[: len(units)]
        for unit in units:
            assert (unit.overlays, unit.with_image) == self.whole_round_of(unit.task, unit.index)
        pairs = len(self.running.image_index)
        assert pairs == sum(unit.pairs for unit in units)
        assert pairs <= self.line.max_pairs or len(units) == 1
        if len(units) < len(undone):
            overlays, with_image = self.whole_round_of(*undone[len(units)])
            assert pairs + len(overlays) + with_image > self.line.max_pairs

        for unit in units:
            self.turn_of[unit.task] = self.turn_of[unit.task.client, unit.task.answered] = next(self.clock)

    def undone_in_turn(self) -> list[tuple[CheckTask, int]]:
        """Return one undecided row of each client, then another; those already answered after all others.

        Of a client it is one row of each of its tasks, then another.
        """
        undone: list[tuple[CheckTask, int]] = []
        for answered in (False, True):
            tasks = sorted(
                (task for task in self.waiting if task.answered is answered), key=self.turn_of.__getitem__
            )
            clients = sorted(
                {task.client for task in tasks}, key=lambda client: self.turn_of[client, answered]
            )
            undone += alternating(
                alternating(
                    [(task, i) for i, row in enumerate(task.rows) if not row.done]
                    for task in tasks
                    if task.client == client
                )
                for client in clients
            )
        return undone

    @precondition(lambda self: self.running is not None)
    @rule()
    def end_the_batch(self) -> None:
        assert self.running is not None
        batch, self.running = self.running, None
        news = complete(self.line, batch, self.classifier)
        assert len(set(news)) == len(news)
        for task in news:
            assert task in self.waiting
            if all(row.done for row in task.rows):
                self.leave([task])
                expect_own_answers(task, self.numbers[task], self.strip, self.table)
            else:
                assert task.answer_first
                assert task not in self.answered
                np.testing.assert_array_equal(task.logits, answers_to(self.numbers[task]))
                self.answered.append(task)
                self.come(task)
        assert not any(all(row.done for row in task.rows) for task in self.waiting)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 99))
    def lose_a_caller(self, which: int) -> None:
        gone = self.waiting[which % len(self.waiting)]
        self.leave([gone])
        self.line.discard(gone)
        self.line.discard(gone)  # twice does no harm

    @invariant()
    def rows_are_those_of_the_tasks_in_line(self) -> None:
        if hasattr(self, "line"):
            assert self.line.rows == sum(len(task.rows) for task in self.waiting) <= self.line.max_rows

    def teardown(self) -> None:
        if not hasattr(self, "line"):
            return
        if self.running is not None:
            self.end_the_batch()
        while self.line.rows:
            self.begin_a_batch()
            self.end_the_batch()
        assert self.waiting == []
        assert self.line.next_batch() is None

    def who_must_go(self, rows: int) -> list[CheckTask] | None:
        """Return which answered tasks make room for so many rows, None if that is not enough."""
        room = self.line.max_rows - self.line.rows
        gone: list[CheckTask] = []
        left = sorted((task for task in self.waiting if task.answered), key=self.turn_of.__getitem__)
        while room < rows and left:
            turns = sorted({task.client for task in left}, key=lambda client: self.turn_of[client, True])
            fullest = max(turns, key=lambda client: sum(len(t.rows) for t in left if t.client == client))
            gone.append(next(task for task in left if task.client == fullest))
            left.remove(gone[-1])
            room += len(gone[-1].rows)
        return gone if room >= rows else None

    def whole_round_of(self, task: CheckTask, index: int) -> tuple[range, bool]:
        row = task.rows[index]
        if not row.predicted and (task.answer_first or not row.wanted):
            return range(0), True
        return self.strip.plan.next_round(row.evidence.passes), not row.predicted


TestLine = LineMachine.TestCase
TestLine.settings = settings(max_examples=60, stateful_step_count=25)


@settings(max_examples=40)
@given(
    masks=st.lists(MASK, min_size=1, max_size=6),
    rounds=ROUNDS,
    boundary=BOUNDARY,
    pair_limits=st.lists(st.integers(1, 64), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_scores_do_not_depend_on_how_requests_were_batched(
    masks: list[list[bool]], rounds: tuple[int, ...], boundary: float, pair_limits: list[int], seed: int
) -> None:
    strip = strip_of(rounds, boundary)
    table = random_table(IMAGES, sum(rounds), seed)
    outcomes = []
    for max_pairs in pair_limits:
        line, numbers, tasks = line_of(strip, max_pairs), count(), []
        for mask in masks:
            tasks.append(task_of([next(numbers) for _ in mask], mask))
            line.add(tasks[-1])
        run_to_the_end(line, TableClassifier(table))
        outcomes.append([(row.evidence, row.decision) for task in tasks for row in task.rows])
        numbers = count()
        for mask, task in zip(masks, tasks, strict=True):
            expect_own_answers(task, [next(numbers) for _ in mask], strip, table)

    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_rows_in_their_last_round_and_rows_that_just_arrived_share_a_batch() -> None:
    line, classifier = line_of(strip_of(boundary=9.0)), TableClassifier(np.ones((5, 8), np.float32))
    line.add(task_of([1]))
    run(line, classifier)
    line.add(task_of([2]))

    run(line, classifier)

    assert classifier.batches[-1].T.tolist() == [[1, 2], [1, 3], [2, -1], [2, 0], [2, 1]]


def test_a_round_larger_than_the_batch_runs_by_itself() -> None:
    line, classifier = line_of(strip_of((4, 4)), max_pairs=2), TableClassifier(np.ones((5, 8), np.float32))
    line.add(task_of([1, 2]))

    run_to_the_end(line, classifier)

    assert [batch.shape[1] for batch in classifier.batches] == [5, 4, 5, 4]


def test_a_clean_row_stops_early_and_a_suspicious_one_spends_all_passes() -> None:
    table = np.array([[8.0] * 8, [0.0] * 8], np.float32)
    line, task = line_of(strip_of()), task_of([0, 1])
    line.add(task)

    run_to_the_end(line, TableClassifier(table))

    assert [(row.decision, row.evidence.passes) for row in task.rows] == [
        (Decision.CLEAN, 2),
        (Decision.SUSPICIOUS, 8),
    ]


def test_a_row_not_to_be_checked_gets_its_prediction_from_one_pair() -> None:
    line, classifier = line_of(strip_of()), TableClassifier(np.ones((9, 8), np.float32))
    task = task_of([7], [False])
    line.add(task)

    assert run(line, classifier) == [task]

    assert classifier.batches[0].T.tolist() == [[7, -1]]
    assert (task.rows[0].done, task.rows[0].decision) == (True, None)
    np.testing.assert_array_equal(task.logits, answers_to([7]))


def test_a_row_whose_entropy_is_not_a_number_fails_and_its_neighbour_does_not() -> None:
    table = np.array([[8.0] * 8, [np.nan] * 8], np.float32)
    line, task = line_of(strip_of()), task_of([0, 1])
    line.add(task)

    run_to_the_end(line, TableClassifier(table))

    assert [row.decision for row in task.rows] == [Decision.CLEAN, Decision.FAILED]


def test_a_task_answered_first_tells_its_prediction_and_then_its_check() -> None:
    line, classifier = line_of(strip_of()), TableClassifier(np.ones((9, 8), np.float32))
    task = task_of([3, 4], answer_first=True)
    line.add(task)

    first = run(line, classifier)

    assert (first, task.answered, line.rows) == ([task], True, 2)
    assert classifier.batches[0].T.tolist() == [[3, -1], [4, -1]]
    assert run_to_the_end(line, classifier) == [task]
    assert [row.decision for row in task.rows] == [Decision.CLEAN, Decision.CLEAN]


def test_a_full_line_refuses_and_says_how_full_it_is() -> None:
    line = line_of(strip_of(), max_rows=3)
    line.add(task_of([1, 2]))

    with pytest.raises(QueueFullError) as refused:
        line.add(task_of([3, 4]))

    assert str(refused.value) == (
        "2 rows are waiting and 2 more came, expected at most 3 (max_queue_rows); retry later or add capacity"
    )
    assert line.rows == 2


def test_only_tasks_already_answered_make_room() -> None:
    line, classifier = (
        line_of(strip_of(boundary=9.0), max_rows=4),
        TableClassifier(np.ones((9, 8), np.float32)),
    )
    answered, unanswered = task_of([1, 2], answer_first=True), task_of([3])
    line.add(answered)
    run(line, classifier)
    line.add(unanswered)

    evicted = line.add(task_of([4, 5]))

    assert evicted == [answered]
    assert [row.decision for row in answered.rows] == [None, None]
    assert line.rows == 3
    with pytest.raises(QueueFullError):
        line.add(task_of([6, 7]))


def test_what_was_running_for_a_caller_who_left_is_dropped() -> None:
    line, classifier = line_of(strip_of()), TableClassifier(np.ones((9, 8), np.float32))
    gone, stays = task_of([1]), task_of([2])
    line.add(gone)
    line.add(stays)
    batch = line.next_batch()
    assert batch is not None
    line.discard(gone)

    news = complete(line, batch, classifier)

    assert (gone.logits, gone.rows[0].evidence.passes) == (None, 0)
    assert news == []
    assert run_to_the_end(line, classifier) == [stays]
    assert line.rows == 0


def test_a_task_that_failed_leaves_the_line_with_its_error() -> None:
    line, task, error = line_of(strip_of()), task_of([1, 2]), RuntimeError("no")
    line.add(task)

    line.fail(task, error)

    assert (task.error, line.rows, line.next_batch()) == (error, 0, None)


def test_a_batch_can_be_made_of_one_task_alone() -> None:
    line, classifier = line_of(strip_of()), TableClassifier(np.ones((9, 8), np.float32))
    first, second = task_of([1]), task_of([2])
    line.add(first)
    line.add(second)

    batch = line.next_batch(only=[second])

    assert batch is not None
    assert batch.tasks == [second]
    complete(line, batch, classifier)
    assert (first.rows[0].predicted, second.rows[0].predicted) == (False, True)
    assert line.next_batch(only=[task_of([3])]) is None


def test_who_waits_for_an_answer_goes_before_the_checks_of_those_who_have_theirs() -> None:
    line = line_of(strip_of(boundary=100.0), max_pairs=1)
    classifier = TableClassifier(random_table(3, 8, seed=0))
    answered = task_of([0], answer_first=True)
    line.add(answered)
    run(line, classifier)
    waiting = task_of([1], answer_first=True)
    line.add(waiting)

    turn = line.next_batch()

    assert answered.answered
    assert turn is not None
    assert turn.tasks == [waiting]


def in_background(numbers: list[int]) -> CheckTask:
    return CheckTask.of(numbered_images(numbers), np.ones(len(numbers), np.bool_), background=True)


def test_the_background_runs_while_nothing_else_waits_and_shares_a_call_with_nobody() -> None:
    line = line_of(strip_of(boundary=100.0))
    classifier = TableClassifier(random_table(4, 8, seed=0))
    background, monitored = in_background([0, 1]), task_of([2], answer_first=True)
    line.add(background)
    line.add(monitored)
    run(line, classifier)
    waiting = task_of([3])
    line.add(waiting)

    assert run_to_the_end(line, classifier) == [waiting, monitored, background]
    alone = {0, 1}
    assert all(
        set(batch[0].tolist()) <= alone or not alone & set(batch[0].tolist()) for batch in classifier.batches
    )


def test_the_background_makes_room_first_and_takes_none() -> None:
    line, classifier = (
        line_of(strip_of(boundary=9.0), max_rows=4),
        TableClassifier(np.ones((9, 8), np.float32)),
    )
    answered, background = task_of([1], answer_first=True), in_background([2, 3])
    line.add(answered)
    run(line, classifier)
    line.add(background)
    with pytest.raises(QueueFullError):
        line.add(in_background([4, 5]))

    assert line.add(task_of([6, 7])) == [background]
    assert line.add(task_of([8, 8])) == [answered]
    assert [row.decision for row in background.rows] == [None, None]


def test_what_was_running_in_the_background_is_dropped_when_it_made_room() -> None:
    line, classifier = line_of(strip_of(), max_rows=2), TableClassifier(np.ones((9, 8), np.float32))
    background, waiting = in_background([1, 2]), task_of([3, 4])
    line.add(background)
    batch = line.next_batch()
    assert batch is not None
    assert line.add(waiting) == [background]

    assert complete(line, batch, classifier) == []
    assert run_to_the_end(line, classifier) == [waiting]


def test_a_caller_with_many_costly_rows_does_not_starve_one_with_a_single_row() -> None:
    line = line_of(strip_of(boundary=100.0), max_pairs=8)
    classifier = TableClassifier(random_table(70, 8, seed=0))
    line.add(task_of(list(range(64))))
    single = task_of([64])
    line.add(single)

    batches = 0
    while not single.rows[0].done:
        run(line, classifier)
        batches += 1

    assert batches == 3  # one for each of its rounds


def test_submissions_that_did_not_fit_into_a_batch_begin_the_next() -> None:
    line = line_of(strip_of(boundary=100.0), max_pairs=6)
    classifier = TableClassifier(random_table(4, 8, seed=0))
    tasks = [task_of([number]) for number in range(4)]
    for task in tasks:
        line.add(task)

    first = line.next_batch()
    assert first is not None
    assert first.tasks == tasks[:2]
    complete(line, first, classifier)
    second = line.next_batch()
    assert second is not None
    assert second.tasks == tasks[2:]


def test_a_client_with_many_costly_submissions_does_not_starve_one_with_a_single_row() -> None:
    line = line_of(
        strip_of(boundary=100.0), max_pairs=3, max_rows=400
    )  # a unit fills a batch; all are suspicious
    classifier = TableClassifier(random_table(300, 8, seed=0))
    for number in range(200):
        line.add(task_of([number], client="flood"))
    run(line, classifier)
    bystander = task_of([250], client="bystander")
    line.add(bystander)

    batches = 0
    while bystander not in run(line, classifier):
        batches += 1
    assert batches <= 2 * 3  # its own three rounds, and before each one of the other's
    assert line.rows == 200


def test_the_rows_of_one_client_that_wait_are_bounded_and_the_others_are_not() -> None:
    line = Line(strip_of(), max_pairs=64, max_rows=10, max_client_rows=3)
    line.add(task_of([1, 2], client="a"))
    with pytest.raises(QueueFullError) as refused:
        line.add(task_of([3, 4], client="a"))
    line.add(task_of([3], client="a"))
    line.add(task_of([4, 5, 6], client="b"))
    line.add(in_background([7, 8]))

    assert str(refused.value) == (
        "2 rows of this client are waiting and 2 more came, expected at most 3 (max_client_rows); wait for "
        "answers before sending more"
    )
    run_to_the_end(line, TableClassifier(random_table(9, 8, seed=0)))
    line.add(task_of([1, 2, 3], client="a"))


def test_checks_of_what_was_answered_count_for_nobodys_bound() -> None:
    line = Line(strip_of(boundary=100.0), max_pairs=64, max_rows=10, max_client_rows=2)
    first = task_of([1, 2], answer_first=True, client="a")
    line.add(first)

    assert run(line, TableClassifier(random_table(9, 8, seed=0))) == [first]
    assert line.add(task_of([3, 4], client="a")) == []


def test_room_is_made_by_the_client_with_most_unfinished_checks() -> None:
    line = line_of(strip_of(boundary=100.0), max_rows=5)
    few, *many = (task_of([n], answer_first=True, client="b" if n else "a") for n in range(4))
    for task in (few, *many):
        line.add(task)
    run(line, TableClassifier(random_table(9, 8, seed=0)))

    assert line.add(task_of([5, 6], client="c")) == many[:1]


def test_a_whole_task_is_decided_by_all_blends_and_by_the_same_decision() -> None:
    table = random_table(20, 8, seed=5)
    classifier = TableClassifier(table)
    strip = strip_of(boundary=0.5)
    line = line_of(strip)
    curtailed = task_of(list(range(20)))
    whole = CheckTask.of(numbered_images(list(range(20))), np.ones(20, bool), background=True, whole=True)
    for task in (curtailed, whole):
        line.add(task)
    run_to_the_end(line, classifier)
    assert [row.evidence.passes for row in whole.rows] == [8] * 20
    assert [row.decision for row in whole.rows] == [row.decision for row in curtailed.rows]
    assert min(row.evidence.passes for row in curtailed.rows) < 8
    for row, entropies in zip(whole.rows, table, strict=False):
        assert row.evidence == strip.update(Evidence(), entropies)
