"""The rounds: 4, 4, 8, 16 … over N overlays in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.detection.plan import CheckPlan, default_rounds

some_rounds = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple)


@pytest.mark.parametrize(
    ("n_overlays", "rounds"),
    [
        (1, (1,)),
        (3, (3,)),
        (4, (4,)),
        (5, (4, 1)),
        (8, (4, 4)),
        (10, (4, 4, 2)),
        (16, (4, 4, 8)),
        (32, (4, 4, 8, 16)),
        (100, (4, 4, 8, 16, 32, 36)),
    ],
)
def test_rounds_start_at_4_and_double_what_was_seen(n_overlays: int, rounds: tuple[int, ...]) -> None:
    assert default_rounds(n_overlays) == rounds


@given(st.integers(1, 10_000))
def test_default_rounds_are_positive_and_sum_to_the_number_of_overlays(n_overlays: int) -> None:
    rounds = default_rounds(n_overlays)
    assert sum(rounds) == n_overlays
    assert min(rounds) >= 1
    assert CheckPlan(rounds).n_overlays == n_overlays


def test_the_number_of_rounds_grows_with_the_logarithm_of_n() -> None:
    assert len(default_rounds(2**20)) == 19


@pytest.mark.parametrize("n_overlays", [0, -1])
def test_default_rounds_of_no_overlays_are_refused(n_overlays: int) -> None:
    with pytest.raises(ValueError, match=f"n_overlays must be at least 1, got {n_overlays}"):
        default_rounds(n_overlays)


@given(some_rounds)
def test_the_rounds_cover_every_overlay_once_and_in_order(rounds: tuple[int, ...]) -> None:
    plan, passes, seen = CheckPlan(rounds), 0, []
    for size in rounds:
        chosen = plan.next_round(passes)
        assert len(chosen) == size
        seen.extend(chosen)
        passes += size
    assert seen == list(range(plan.n_overlays))


@given(some_rounds)
def test_no_round_follows_after_the_last(rounds: tuple[int, ...]) -> None:
    plan = CheckPlan(rounds)
    with pytest.raises(ValueError, match=f"no round starts after {plan.n_overlays} passes"):
        plan.next_round(plan.n_overlays)


@pytest.mark.parametrize("passes", [-1, 1, 3, 5, 9])
def test_a_round_starts_only_where_another_ended(passes: int) -> None:
    with pytest.raises(ValueError, match=rf"after {passes} passes; rounds start at \(0, 4\)"):
        CheckPlan((4, 4)).next_round(passes)


@pytest.mark.parametrize("rounds", [(), (0,), (4, 0), (4, -1)])
def test_a_plan_without_rounds_or_with_an_empty_round_is_refused(rounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rounds must be positive and at least one"):
        CheckPlan(rounds)
