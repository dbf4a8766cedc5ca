"""Class-stratified STRIP and the fusion of statistics, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from guard.detection.fusion import fit_fusion
from guard.detection.stratified import SHRINKAGE, Strata, fit_strata


def scores_of(strata: Strata, predicted: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return z of inputs of which every overlay leaves so much."""
    inputs, overlays = kept.shape
    each = np.tile(np.arange(overlays), inputs)
    residuals = strata.residuals(np.repeat(predicted, overlays), each, kept.reshape(-1))
    return strata.highest(residuals.reshape(inputs, overlays))


def test_the_highest_class_of_overlays_counts_and_the_input_s_own_does_not() -> None:
    strata = Strata(
        overlay_classes=np.array([0, 1, 1, 2]),
        classes=np.array([0, 1, 2]),
        means=np.full((3, 3), 0.5),
        spreads=np.array([0.1, 0.1, 0.2]),
    )
    kept = np.array([[1.0, 0.6, 0.8, 0.6], [1.0, 0.6, 0.8, 0.6]])
    scores = scores_of(strata, np.array([0, 1]), kept)
    np.testing.assert_allclose(scores, [2.0, 5.0], rtol=1e-5)  # (.7 - .5) / .1, and (1 - .5) / .1


def test_means_are_drawn_to_those_of_all_inputs_and_spreads_are_about_them() -> None:
    predicted, kept = [0, 0, 1], np.array([[1.0, 0.5], [0.5, 0.5], [0.0, 0.8]])
    strata = fit_strata(np.array(predicted), kept, np.array([0, 2]), 3)
    whole = np.array([0.5, 0.6])
    first = (np.array([1.5, 1.0]) + SHRINKAGE * whole) / (2 + SHRINKAGE)
    second = (np.array([0.0, 0.8]) + SHRINKAGE * whole) / (1 + SHRINKAGE)
    np.testing.assert_allclose(strata.means, [first, second, whole], rtol=1e-6)
    left = kept - np.array([first, first, second])
    np.testing.assert_allclose(strata.spreads, left.std(axis=0), rtol=1e-5)


def test_a_source_specific_trigger_shows_though_the_mean_over_all_overlays_hides_it() -> None:
    random = np.random.default_rng(0)
    clean = random.uniform(0.3, 0.5, (200, 20))
    predicted = random.integers(0, 5, 200)
    overlay_classes = np.repeat(np.arange(5), 4)
    strata = fit_strata(predicted, clean, overlay_classes, 5)
    triggered = random.uniform(0.2, 0.4, (50, 20))
    triggered[:, overlay_classes == 3] = 0.9
    label = np.zeros(50, np.int64)
    scores = scores_of(strata, label, triggered)
    ordinary = scores_of(strata, predicted, clean)
    assert scores.min() > ordinary.max()
    assert np.quantile(triggered.mean(1), 0.9) < np.quantile(clean.mean(1), 0.99) + 0.1


@pytest.mark.parametrize(("inputs", "overlay_classes"), [(5, [1, 1]), (1, [0, 1])])
def test_too_few_inputs_or_classes_of_overlays_are_refused(inputs: int, overlay_classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected .*two"):
        fit_strata(np.zeros(inputs, np.int64), np.full((inputs, 2), 1 / 3), np.array(overlay_classes), 3)


def test_statistics_are_fused_on_the_scale_of_clean_inputs() -> None:
    """Medians 50 and 500, upper ends 98 and 980: an input at 98 and 740 scores 1 and ½, so 1."""
    clean = np.arange(101.0)
    fusion = fit_fusion(np.stack([clean, 10 * clean], axis=1))
    np.testing.assert_allclose(fusion.scores(np.array([[98.0, 740.0], [2.0, 980.0]])), [1.0, 1.0])
    np.testing.assert_allclose(fusion.scores(np.array([[74.0, 500.0], [50.0, 20.0]])), [0.5, 0.0])


def test_a_statistic_that_clean_inputs_never_move_still_shows_what_does() -> None:
    fusion = fit_fusion(np.zeros((10, 1)))
    assert fusion.scores(np.array([[0.0], [0.1]])).tolist() == pytest.approx([0.0, 100.0])


def test_a_statistic_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_fusion(np.array([[np.nan]]))
