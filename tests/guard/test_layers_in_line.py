"""The layer distance of each input goes into its own evidence, whatever it shares a device call with."""

from __future__ import annotations

import numpy as np
import pytest

from guard.arrays import Features
from guard.detection.base import Decision
from guard.detection.capabilities.layer_distances import LayerDistances
from guard.detection.fused import Early, Fused
from guard.detection.fusion import Fusion
from guard.detection.measurements import Measures
from guard.detection.plan import CheckPlan
from guard.detection.responses import Responses
from guard.runtime.check_task import CheckTask
from guard.runtime.checked_classifier import run_pairs
from guard.runtime.rounds import Line
from tests.guard.fake_classifier import CLASSES, TableClassifier, numbered_images, random_table

ROUNDS = (2, 4)
TABLE = random_table(12, sum(ROUNDS), seed=3)
DISTANCES = LayerDistances((1,), np.zeros((CLASSES, 1), np.float32), (np.eye(1, dtype=np.float32),))


class LayeredTable(TableClassifier):
    """Image i has the feature i + 1 by itself, and 1,000 under any overlay."""

    def check_layers(
        self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Features]:
        numbers = images[image_index].reshape(-1, 1)
        features = np.where(overlay_index[:, None] < 0, numbers + 1, np.float32(1000.0))
        return (*self.check(images, image_index, overlay_index), features.astype(np.float32))


def distance_of(number: int) -> float:
    return float(np.log((number + 1.0) ** 2))


def detector(boundary: float) -> Fused:
    """Its score is the layer distance, and it accepts nothing early."""
    expected = np.full((CLASSES, sum(ROUNDS), CLASSES), 1 / CLASSES, np.float32)
    measures = Measures(Responses(expected), None, DISTANCES)
    one = Fusion(np.zeros(1), np.ones(1))
    never = Early(2, one, -np.inf)
    return Fused(CheckPlan(ROUNDS), measures, ("layers",), one, (never,), boundary)


def run(fused: Fused, tasks: list[CheckTask], max_pairs: int, *, with_layers: bool = True) -> None:
    line, classifier = Line(fused, max_pairs=max_pairs, max_rows=100), LayeredTable(TABLE)
    for task in tasks:
        line.add(task)
    while (batch := line.next_batch()) is not None:
        pairs = (batch.images, batch.image_index, batch.overlay_index)
        found = run_pairs(classifier, *pairs, with_layers=with_layers)
        batch.check_sizes(*found)
        line.complete(batch, line.measured(batch, *found))


@pytest.mark.parametrize("answer_first", [False, True])
@pytest.mark.parametrize("max_pairs", [1, 5, 64])
def test_each_input_is_scored_by_its_own_layers(max_pairs: int, answer_first: bool) -> None:
    tasks = [
        CheckTask.of(numbered_images(numbers), np.ones(len(numbers), bool), answer_first=answer_first)
        for numbers in ([0, 5, 1], [11], [3, 2])
    ]
    run(detector(boundary=distance_of(4)), tasks, max_pairs)
    for task, numbers in zip(tasks, ([0, 5, 1], [11], [3, 2]), strict=True):
        assert [row.evidence.distance for row in task.rows] == [distance_of(number) for number in numbers]
        expected = [Decision.SUSPICIOUS if number > 4 else Decision.CLEAN for number in numbers]
        assert [row.decision for row in task.rows] == expected


def test_an_input_far_away_inside_is_rejected_after_its_first_round() -> None:
    task = CheckTask.of(numbered_images([0, 9]), np.ones(2, bool))
    run(detector(boundary=distance_of(4)), [task], 64)
    assert [row.evidence.passes for row in task.rows] == [sum(ROUNDS), ROUNDS[0]]


def test_an_input_whose_layers_did_not_come_fails_the_check() -> None:
    task = CheckTask.of(numbered_images([0]), np.ones(1, bool))
    run(detector(boundary=distance_of(4)), [task], 64, with_layers=False)
    assert task.rows[0].decision is Decision.FAILED


def test_features_of_other_than_the_batch_are_refused() -> None:
    line = Line(detector(0.0), max_pairs=8, max_rows=8)
    line.add(CheckTask.of(numbered_images([0]), np.ones(1, bool)))
    batch = line.next_batch()
    assert batch is not None
    with pytest.raises(ValueError, match="features of 3 pairs, got 2"):
        batch.check_sizes(np.zeros((3, CLASSES)), np.zeros(3), np.zeros((2, 1)))


def test_a_classifier_without_layers_cannot_serve_a_detector_that_needs_them() -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(TypeError, match="TableClassifier: expected a classifier that returns its layers"):
        run_pairs(TableClassifier(TABLE), numbered_images([0]), one, one, with_layers=True)
