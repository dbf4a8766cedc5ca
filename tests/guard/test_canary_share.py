"""The share of a candidate: exact over time, without a pattern, and the same again from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.dataplane.share import Share


def taken(share: float, requests: int, seed: int = 0) -> np.ndarray:
    picks = Share(share, np.random.default_rng(seed))
    return np.array([picks.takes() for _ in range(requests)])


@given(share=st.floats(1e-3, 1.0), requests=st.integers(1, 1500), seed=st.integers(0, 2**32 - 1))
def test_after_any_number_of_requests_the_share_is_exact_to_one(
    share: float, requests: int, seed: int
) -> None:
    assert abs(taken(share, requests, seed).sum() - share * requests) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("share", "requests", "expected"), [(0.05, 2000, 100), (0.5, 600, 300), (1.0, 50, 50)]
)
def test_whole_stretches_hold_exactly_their_share(share: float, requests: int, expected: int) -> None:
    assert taken(share, requests).sum() == expected


def test_callers_that_come_in_turns_are_all_picked_from() -> None:
    first, second = taken(0.5, 1000)[0::2], taken(0.5, 1000)[1::2]
    assert 150 < first.sum() < 350
    assert first.sum() + second.sum() == 500


def test_a_seed_gives_the_same_requests_and_another_gives_others() -> None:
    assert (taken(0.2, 500, seed=1) == taken(0.2, 500, seed=1)).all()
    assert (taken(0.2, 500, seed=1) != taken(0.2, 500, seed=2)).any()


def test_a_share_of_nothing_picks_none() -> None:
    assert taken(0.0, 500).sum() == 0


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_of_less_than_nothing_or_more_than_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number from 0 to 1, got"):
        Share(share, np.random.default_rng(0))
