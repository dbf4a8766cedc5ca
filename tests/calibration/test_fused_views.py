"""Views as calibration fits them: what they are there for, and that scales are those of held-out inputs."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.fused_fit import DEFAULT_STATISTICS, FusedFit, fit_fused
from calibration.fused_views import fit_views
from guard.detection.entropy import entropy_of_probabilities, softmax
from guard.detection.fusion import UPPER
from guard.detection.measurements import Statistic

ALL: tuple[Statistic, ...] = (*DEFAULT_STATISTICS, "layers")
CLASSES, OVERLAYS = 4, 8
OVERLAY_CLASSES = np.arange(OVERLAYS) % CLASSES


def clean(count: int = 2000) -> np.ndarray:
    """Return departure, entropy, stratified, strip and layers; what holds predictions is of low entropy."""
    random = np.random.default_rng(0)
    hold, other = random.normal(size=(2, count))
    entropy = -hold + 0.5 * random.normal(size=count)
    return np.stack([hold + other, entropy, hold + random.normal(size=count), -entropy, other], axis=1)


def fused_of(count: int) -> tuple[FusedFit, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(1)
    predicted = random.integers(0, CLASSES, count)
    answers = softmax(random.normal(0, 3, (count, OVERLAYS, CLASSES)).astype(np.float32))
    entropies = entropy_of_probabilities(answers)
    found = fit_fused(predicted, answers, entropies, OVERLAY_CLASSES, (2, 2, 4))
    return found, (predicted, answers, entropies)


def test_every_view_has_clean_inputs_below_1_but_for_the_share_that_scales_are_set_by() -> None:
    fusion = fit_views(ALL, clean())
    on_scale = fusion.standardised(clean())
    assert len(fusion.views) == 3
    for view in fusion.views:
        seen = view.seen(on_scale)
        assert np.median(seen) == pytest.approx(0.0, abs=1e-9)
        assert np.quantile(seen, UPPER) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("departure", "entropy", "stratified"),
    [(0.95, -0.9, 0.95), (0.9, 0.3, 0.0)],
    ids=["holds every prediction", "leads blends elsewhere"],
)
def test_a_trigger_that_no_statistic_shows_shows_in_a_view(
    departure: float, entropy: float, stratified: float
) -> None:
    """Clean inputs reach each of these values alone, and hardly together."""
    names = DEFAULT_STATISTICS
    fusion = fit_views(names, clean()[:, :4])
    on_scale = np.array([departure, entropy, stratified, -entropy])
    trigger = (fusion.centres + fusion.scales * on_scale)[None]
    trigger[:, 3] = -trigger[:, 1]
    assert fusion.standardised(trigger).max() < 1.0
    assert fusion.scores(trigger)[0] > 1.0


@pytest.mark.parametrize(
    ("names", "views"),
    [
        (ALL, [[0, 1, 2, 4], [0, 2, 3, 4], [0, 1, 4]]),
        (("departure", "stratified"), [[0, 1], [0, 1], [0]]),
        (("strip",), [[0]]),
        (("layers",), [[0]]),
        (("strip", "layers"), [[0, 1]]),
    ],
)
def test_a_statistic_that_is_not_there_is_left_out(
    names: tuple[Statistic, ...], views: list[list[int]]
) -> None:
    columns = [ALL.index(name) for name in names]
    fusion = fit_views(names, clean()[:, columns])
    assert [np.flatnonzero(view.weights.sum(axis=0)).tolist() for view in fusion.views] == views


def test_scales_are_those_of_inputs_that_were_not_fitted_on() -> None:
    found, asked = fused_of(60)
    seen = found.measures.statistics(found.statistics, found.measures.of_inputs(*asked))
    place = found.statistics.index("departure")
    assert found.fusion.centres[place] > np.median(seen[:, place]) + 0.005


def test_inputs_too_few_to_be_parted_are_fitted_all_the_same() -> None:
    found, asked = fused_of(5)
    measured = found.measures.of_inputs(*asked)
    assert np.isfinite(found.scores(measured)).all()
