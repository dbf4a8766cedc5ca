"""Whose turn it is: nobody waits longer for another having more, and nobody is remembered who has nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from guard.runtime.turns import Turns

LOADS = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1
)


@dataclass(eq=False)
class Job:
    """Takes some turns and is over."""

    client: str
    left: int
    size: int = 1
    served: list[int] = field(default_factory=list)


def units_of(job: Job) -> Iterator[Job]:
    return (job for _ in range(job.left))


def turns_of(loads: dict[str, list[int]]) -> tuple[Turns[Job], list[Job]]:
    turns: Turns[Job] = Turns()
    jobs = [Job(client, left) for client, lefts in loads.items() for left in lefts]
    for job in jobs:
        turns.add(job)
    return turns, jobs


def serve(turns: Turns[Job], at_once: int) -> list[Job]:
    """Serve a batch, as the line does it."""
    batch = list(islice(turns.units(units_of), at_once))
    for job in batch:
        turns.served(job)
        job.left -= 1
    for job in dict.fromkeys(batch):
        if not job.left:
            turns.remove(job)
    return batch


@given(loads=LOADS, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_between_two_turns_of_a_client_every_other_that_waits_has_one(
    loads: dict[str, list[int]], sizes: list[int]
) -> None:
    turns, _ = turns_of(loads)
    order: list[Job] = []
    last: dict[str, int] = {}
    left = Counter({client: sum(lefts) for client, lefts in loads.items()})
    while len(turns):
        for job in serve(turns, sizes[len(order) % len(sizes)]):
            since = {served.client for served in order[last.get(job.client, len(order)) + 1 :]}
            if job.client in last:
                assert {client for client in left if left[client]} <= since | {job.client}
            last[job.client] = len(order)
            left[job.client] -= 1
            order.append(job)

    assert sum(left.values()) == 0
    assert len(order) == sum(sum(lefts) for lefts in loads.values())


@given(loads=LOADS, at_once=st.integers(1, 12))
def test_between_two_turns_of_a_task_every_other_of_its_client_has_one(
    loads: dict[str, list[int]], at_once: int
) -> None:
    turns, jobs = turns_of(loads)
    order: list[Job] = []
    while len(turns):
        order += serve(turns, at_once)
    for client in loads:
        own = [job for job in order if job.client == client]
        for job in jobs:
            places = [place for place, served in enumerate(own) if served is job]
            for before, after in pairwise(places):
                between = own[before + 1 : after]
                waiting = {other for other in own[after:] if other is not job}
                assert waiting <= set(between)


def test_a_client_that_comes_back_comes_after_those_who_wait() -> None:
    turns, [first, second] = turns_of({"a": [1], "b": [2]})
    assert serve(turns, 1) == [first]
    again = Job("a", 1)
    turns.add(again)

    assert [serve(turns, 1) for _ in range(3)] == [[second], [again], [second]]


def test_who_has_most_is_named_first_when_room_is_made() -> None:
    turns: Turns[Job] = Turns()
    small, *large = (Job("a", 1, size=2), Job("b", 1, size=3), Job("b", 1, size=2), Job("b", 1, size=1))
    for job in (small, *large):
        turns.add(job)

    assert list(turns.of_the_fullest()) == [large[0], large[1], small, large[2]]
    assert list(turns.of_the_fullest()) == [large[0], large[1], small, large[2]]  # it only looks


@given(loads=LOADS)
def test_nobody_is_known_who_has_nothing(loads: dict[str, list[int]]) -> None:
    turns, jobs = turns_of(loads)
    assert {client: turns.size_of(client) for client in loads} == {
        client: len(lefts) for client, lefts in loads.items()
    }
    for job in jobs:
        assert job in turns
        turns.remove(job)
        assert job not in turns

    assert (len(turns), [turns.size_of(client) for client in loads]) == (0, [0] * len(loads))
