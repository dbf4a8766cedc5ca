"""Views of statistics: values worked by hand, and the laws that rejecting early rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.detection.fusion import Fusion, View

LENGTH = View(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), centre=1.0, scale=2.0)
SUM = View(np.array([[1.0, 0.0, 0.5]]), centre=-1.0, scale=1.0)


def random_fusion(seed: int, statistics: int) -> Fusion:
    random = np.random.default_rng(seed)

    def view() -> View:
        weights = random.uniform(0, 2, (random.integers(1, 4), statistics))
        return View(weights * (random.random(weights.shape) < 0.5), random.normal(), random.uniform(0.1, 3))

    centres, scales = random.normal(size=statistics), random.uniform(0.1, 3, statistics)
    return Fusion(centres, scales, tuple(view() for _ in range(random.integers(0, 4))))


def test_a_view_is_its_row_or_the_length_of_its_rows_above_0() -> None:
    """(√(3² + 4²) − 1) / 2 = 2; below 0 only 4 counts: 1.5. And 3 + ½ · 2 + 1 = 5, −3 + 1 + 1 = −1."""
    on_scale = np.array([[3.0, 4.0, 2.0], [-3.0, 4.0, 2.0]])
    assert LENGTH.seen(on_scale).tolist() == [2.0, 1.5]
    assert SUM.seen(on_scale).tolist() == [5.0, -1.0]


def test_the_score_is_the_highest_view_of_statistics_on_their_scales() -> None:
    fusion = Fusion(np.array([10.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0]), (LENGTH, SUM))
    assert fusion.scores(np.array([[16.0, 4.0, 2.0], [4.0, 4.0, 2.0]])).tolist() == [5.0, 1.5]


def test_without_views_each_statistic_is_one() -> None:
    fusion = Fusion(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    assert fusion.scores(np.array([[5.0, 2.0], [0.0, 0.0]])).tolist() == [2.0, -0.5]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_one_input_scores_as_it_does_among_others(seed: int, statistics: int) -> None:
    fusion = random_fusion(seed, statistics)
    inputs = np.random.default_rng(seed + 1).normal(0, 3, (5, statistics))
    one_by_one = [fusion.score(row) for row in inputs.tolist()]
    np.testing.assert_allclose(one_by_one, fusion.scores(inputs), rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_score_never_falls_where_a_statistic_rises(seed: int, statistics: int) -> None:
    fusion, random = random_fusion(seed, statistics), np.random.default_rng(seed + 1)
    low = random.normal(0, 3, (20, statistics))
    high = low + random.exponential(1, low.shape) * (random.random(low.shape) < 0.5)
    assert (fusion.scores(high) >= fusion.scores(low) - 1e-9).all()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_what_some_statistics_say_is_a_lower_bound(seed: int, statistics: int) -> None:
    fusion, random = random_fusion(seed, statistics), np.random.default_rng(seed + 1)
    places = random.permutation(statistics)[: random.integers(1, statistics + 1)].tolist()
    inputs = random.normal(0, 3, (20, statistics))
    some = fusion.over(places)
    if some is not None:
        assert (some.scores(inputs[:, places]) <= fusion.scores(inputs) + 1e-9).all()


def test_rows_that_need_other_statistics_are_left_out_and_without_any_there_is_no_bound() -> None:
    fusion = Fusion(np.zeros(3), np.ones(3), (LENGTH, SUM))
    first = fusion.over([0])
    assert first is not None
    assert first.scores(np.array([[5.0]])).tolist() == [2.0]  # (5 − 1) / 2, of the first row of LENGTH
    assert fusion.over([2]) is None
    assert fusion.over([]) is None
    assert Fusion(np.zeros(2), np.ones(2)).over([]) is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_statistic_that_is_no_number_makes_a_score_that_is_none(place: int) -> None:
    inputs = np.ones((1, 3))
    inputs[0, place] = np.nan
    assert np.isnan(Fusion(np.zeros(3), np.ones(3), (LENGTH, SUM)).scores(inputs)).all()
