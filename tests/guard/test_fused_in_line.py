"""The fused detector in the waiting line: each input is decided as it is alone, and by its own class.

Answers of the model are whatever floats can be. What shares a device call, how often one fails and is run
again, and whether the prediction was wanted first, changes nothing.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.detection.base import Decision, Evidence, predicted_classes
from guard.detection.entropy import entropy_of_logits
from guard.detection.fused import Early, Fused
from guard.detection.fusion import Fusion
from guard.detection.measurements import Measures
from guard.detection.plan import CheckPlan
from guard.detection.responses import Responses
from guard.detection.stratified import Strata
from guard.runtime.check_task import CheckTask
from guard.runtime.rounds import Line
from tests.guard.fake_classifier import numbered_images

CLASSES, ROUNDS, INPUTS = 3, (2, 2, 4), 9
OVERLAYS = sum(ROUNDS)
POISON = (np.nan, np.inf, -np.inf, 3e38, -3e38)


def detector_of(random: np.random.Generator) -> Fused:
    """Return one that expects something else of each class under each overlay, and decides both ways."""
    expected = random.dirichlet(np.ones(CLASSES), (CLASSES, OVERLAYS)).astype(np.float32)
    means = random.uniform(0.2, 0.5, (CLASSES, CLASSES))
    strata = Strata(np.arange(OVERLAYS) % CLASSES, np.arange(CLASSES), means, np.full(CLASSES, 0.2))
    early = tuple(Early(passes, Fusion(np.array([0.3, 2.0]), np.array([0.2, 2.0])), 0.1) for passes in (2, 4))
    fusion = Fusion(np.array([0.1, 1.0, 0.5]), np.array([0.2, 0.7, 1.5]))
    measures = Measures(Responses(expected), strata)
    return Fused(
        CheckPlan(ROUNDS), measures, ("departure", "surprise", "stratified"), fusion, early, 1.0, 1.2
    )


def answers_of(random: np.random.Generator) -> np.ndarray:
    """Return logits by input and overlay, the input itself last; some hold what is no number."""
    answers = random.normal(0.0, 2.0, (INPUTS, OVERLAYS + 1, CLASSES)).astype(np.float32)
    for one in random.choice(INPUTS, INPUTS // 3, replace=False):
        answers[one, random.integers(OVERLAYS + 1), random.integers(CLASSES)] = random.choice(POISON)
    return answers


def entropies_of(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return entropy_of_logits(logits)


def alone(detector: Fused, answers: np.ndarray, whole: bool) -> tuple[Decision, int]:
    """Return what is decided of one input that shares a call with nothing, and after how many passes."""
    predicted, evidence, decision = predicted_classes(answers[-1:]), Evidence(), None
    while decision is None:
        chosen = np.array(detector.plan.next_round(evidence.passes))
        rows = answers[chosen]
        classes = np.repeat(predicted, len(chosen))
        evidence = detector.update(evidence, detector.measure(classes, chosen, rows, entropies_of(rows)))
        if not whole or evidence.passes == OVERLAYS:
            decision = detector.decide(evidence)
    return decision, evidence.passes


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_each_input_is_decided_as_it_is_alone(seed: int, max_pairs: int) -> None:
    random = np.random.default_rng(seed)
    detector, answers = detector_of(random), answers_of(random)
    line = Line(detector, max_pairs=max_pairs, max_rows=INPUTS)
    tasks: list[tuple[list[int], CheckTask]] = []
    for numbers in np.array_split(np.arange(INPUTS), 5):
        first, whole, client = random.random() < 0.4, random.random() < 0.2, str(random.integers(2))
        images = numbered_images(numbers.tolist())
        task = CheckTask.of(
            images, np.ones(len(numbers), bool), answer_first=first, whole=whole, client=client
        )
        line.add(task)
        tasks.append((numbers.tolist(), task))
    while (batch := line.next_batch()) is not None:
        if random.random() < 0.2:
            continue  # it failed, and is run again
        numbers = batch.images[batch.image_index].reshape(-1).astype(np.int64)
        logits = answers[numbers, batch.overlay_index]
        line.complete(batch, line.measured(batch, logits, entropies_of(logits)))
    for of_task, task in tasks:
        for number, row in zip(of_task, task.rows, strict=True):
            assert (row.decision, row.evidence.passes) == alone(detector, answers[number], task.whole)
            seen = answers[number, [*range(row.evidence.passes), OVERLAYS]]
            unknown = np.isnan(seen).any() or np.isposinf(seen).any() or not np.isfinite(seen[-1]).all()
            assert (row.decision is Decision.FAILED) == unknown


def test_all_decisions_occur() -> None:
    """The test above would say little otherwise."""
    met = set()
    for seed in range(8):
        random = np.random.default_rng(seed)
        detector = detector_of(random)
        met |= {alone(detector, one, whole=False) for one in answers_of(random)}
    assert {decision for decision, _ in met} == set(Decision)
    assert {passes for decision, passes in met if decision is Decision.CLEAN} >= {2, 4}
    assert {passes for decision, passes in met if decision is Decision.SUSPICIOUS} >= {4, OVERLAYS}
