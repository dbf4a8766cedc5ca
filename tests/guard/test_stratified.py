"""Class-stratified STRIP and the fusion of statistics, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from guard.detection.fusion import fit_fusion
from guard.detection.stratified import SHRINKAGE, Strata, fit_strata


def answers_of(kept: list[list[float]], predicted: list[int], classes: int = 3) -> np.ndarray:
    """Return probabilities that leave each input's own class so much under each overlay."""
    table = np.asarray(kept, np.float32)
    probabilities = np.repeat(((1 - table) / (classes - 1))[:, :, None], classes, axis=2)
    for row, label in enumerate(predicted):
        probabilities[row, :, label] = table[row]
    return probabilities


def test_the_highest_class_of_overlays_counts_and_the_input_s_own_does_not() -> None:
    strata = Strata(
        overlay_classes=np.array([0, 1, 1, 2]),
        classes=np.array([0, 1, 2]),
        means=np.full((3, 3), 0.5),
        spreads=np.array([0.1, 0.1, 0.2]),
    )
    kept = [[1.0, 0.6, 0.8, 0.6], [1.0, 0.6, 0.8, 0.6]]
    scores = strata.scores(np.array([0, 1]), answers_of(kept, [0, 1]))
    np.testing.assert_allclose(scores, [2.0, 5.0], rtol=1e-5)  # (.7 - .5) / .1, and (1 - .5) / .1


def test_means_are_drawn_to_those_of_all_inputs_and_spreads_are_about_them() -> None:
    predicted, kept = [0, 0, 1], [[1.0, 0.5], [0.5, 0.5], [0.0, 0.8]]
    strata = fit_strata(np.array(predicted), answers_of(kept, predicted), np.array([0, 2]))
    whole = np.array([0.5, 0.6])
    first = (np.array([1.5, 1.0]) + SHRINKAGE * whole) / (2 + SHRINKAGE)
    second = (np.array([0.0, 0.8]) + SHRINKAGE * whole) / (1 + SHRINKAGE)
    np.testing.assert_allclose(strata.means, [first, second, whole], rtol=1e-6)
    left = np.array(kept) - np.array([first, first, second])
    np.testing.assert_allclose(strata.spreads, left.std(axis=0), rtol=1e-5)


def test_a_source_specific_trigger_shows_though_the_mean_over_all_overlays_hides_it() -> None:
    random = np.random.default_rng(0)
    clean = random.uniform(0.3, 0.5, (200, 20))
    predicted = random.integers(0, 5, 200)
    overlay_classes = np.repeat(np.arange(5), 4)
    strata = fit_strata(predicted, answers_of(clean.tolist(), predicted.tolist(), 5), overlay_classes)
    triggered = random.uniform(0.2, 0.4, (50, 20))
    triggered[:, overlay_classes == 3] = 0.9
    label = np.zeros(50, np.int64)
    scores = strata.scores(label, answers_of(triggered.tolist(), label.tolist(), 5))
    ordinary = strata.scores(predicted, answers_of(clean.tolist(), predicted.tolist(), 5))
    assert scores.min() > ordinary.max()
    assert np.quantile(triggered.mean(1), 0.9) < np.quantile(clean.mean(1), 0.99) + 0.1


@pytest.mark.parametrize(("inputs", "overlay_classes"), [(5, [1, 1]), (1, [0, 1])])
def test_too_few_inputs_or_classes_of_overlays_are_refused(inputs: int, overlay_classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected .*two"):
        fit_strata(
            np.zeros(inputs, np.int64), np.full((inputs, 2, 3), 1 / 3, np.float32), np.array(overlay_classes)
        )


def test_statistics_are_fused_on_the_scale_of_clean_inputs() -> None:
    """Medians 50 and 500, upper ends 98 and 980: an input at 98 and 740 scores 1 and ½, so 1."""
    clean = np.arange(101.0)
    fusion = fit_fusion(np.stack([clean, 10 * clean], axis=1))
    np.testing.assert_allclose(fusion.scores(np.array([[98.0, 740.0], [2.0, 980.0]])), [1.0, 1.0])
    np.testing.assert_allclose(fusion.scores(np.array([[74.0, 500.0], [50.0, 20.0]])), [0.5, 0.0])


def test_a_statistic_that_clean_inputs_never_move_still_shows_what_does() -> None:
    fusion = fit_fusion(np.zeros((10, 1)))
    assert fusion.scores(np.array([[0.0], [0.1]])).tolist() == pytest.approx([0.0, 1e8])


def test_a_statistic_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_fusion(np.array([[np.nan]]))
