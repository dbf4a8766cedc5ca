"""The boundary on scores keeps its rate: over many calibrations, with ties, for scores of either sign."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.errors import TooFewImagesError
from calibration.threshold import SCORE_MARGIN, conformal_rank, score_boundary
from guard.detection.fusion import fit_fusion

ALPHA, DELTA = 0.05, 0.1


def test_the_true_rate_exceeds_what_is_certified_in_no_more_than_delta_of_calibrations() -> None:
    draws = 1500
    scores = np.random.default_rng(0).normal(0.0, 1.0, (draws, 200))
    tiers = [score_boundary(row, ALPHA, DELTA) for row in scores]
    rates = np.asarray(stats.norm.sf([tier.boundary for tier in tiers]))
    exceeding = float((rates > tiers[0].certified_frr).mean())
    noise = 4 * np.sqrt(DELTA * (1 - DELTA) / draws)
    assert DELTA - noise - 0.01 < exceeding < DELTA + noise  # kept, and not by rejecting next to nothing
    assert rates.mean() == pytest.approx(tiers[0].expected_frr, rel=0.05)


@pytest.mark.parametrize("tie", [-7.0, -0.5, 0.0, 0.5, 7.0, 7e4])
def test_a_tie_at_the_boundary_that_is_served_a_little_higher_is_not_rejected(tie: float) -> None:
    tier = score_boundary(np.full(200, tie), ALPHA, DELTA)
    rounding = 1e-5 * max(1.0, abs(tie))
    assert tie + rounding <= tier.boundary <= tie + 2 * SCORE_MARGIN * max(1.0, abs(tie))


@pytest.mark.parametrize("centre", [-9.0, 0.0, 9.0])
def test_it_is_the_ranked_score_from_above_and_a_lower_rate_is_never_a_lower_boundary(centre: float) -> None:
    scores = np.random.default_rng(1).normal(centre, 0.1, 500)
    flags, blocks = score_boundary(scores, ALPHA, DELTA), score_boundary(scores, ALPHA / 5, DELTA)
    assert flags.rank == conformal_rank(500, ALPHA, DELTA) > blocks.rank
    assert int((scores > flags.boundary).sum()) == flags.rank - 1
    assert blocks.boundary > flags.boundary


def test_rounding_of_a_statistic_that_clean_inputs_hardly_move_stays_within_the_margin() -> None:
    """Of an image that repeats, float32 gives a departure that is off by 6e-8 in another batch or device."""
    departures = np.random.default_rng(2).uniform(0.0, 1e-6, (300, 1))
    fusion = fit_fusion(departures)
    tier = score_boundary(fusion.scores(departures), ALPHA, DELTA)
    ranked = np.sort(departures[:, 0])[-tier.rank]
    assert fusion.scores(np.array([[ranked + 6e-8]]))[0] <= tier.boundary


def test_too_few_scores_are_refused_with_the_number_needed() -> None:
    with pytest.raises(TooFewImagesError, match="expected at least 45") as caught:
        score_boundary(np.zeros(44), ALPHA, DELTA)
    assert caught.value.needed == 45
