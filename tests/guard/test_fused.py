"""The fused detector: stopping early changes the cost, and never rejects what all blends accept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.fused_views import fit_views
from guard.detection.base import Decision, Evidence
from guard.detection.entropy import entropy_of_logits, softmax
from guard.detection.fused import Early, Fused, outcomes
from guard.detection.fusion import Fusion
from guard.detection.measurements import Measures, Statistic
from guard.detection.plan import CheckPlan
from guard.detection.responses import fit_responses
from guard.detection.stratified import fit_strata

CLASSES, ROUNDS = 4, (2, 2, 4)
OVERLAYS = sum(ROUNDS)
OVERLAY_CLASSES = np.arange(OVERLAYS) % CLASSES


class World:
    """Inputs that answer under an overlay as it does, or as they do, or as a trigger says."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def logits(self, inputs: int, triggered: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return predicted classes and logits (n, m, k)."""
        predicted = self.random.integers(0, CLASSES, inputs)
        own, theirs = np.eye(CLASSES)[predicted][:, None], np.eye(CLASSES)[OVERLAY_CLASSES][None]
        share = 1.0 if triggered else self.random.uniform(0.2, 0.8, (inputs, OVERLAYS, 1))
        noise = self.random.normal(0, 0.3, (inputs, OVERLAYS, CLASSES))
        return predicted, (6 * (share * own + (1 - share) * theirs) + noise).astype(np.float32)


def measured_by(measures: Measures, predicted: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return measures.of_inputs(predicted, softmax(logits), entropy_of_logits(logits))


def fitted(
    world: World,
    statistics: tuple[Statistic, ...] = ("departure", "surprise", "stratified", "strip"),
    block: float | None = None,
    rate: float = 0.02,
) -> Fused:
    predicted, logits = world.logits(400)
    kept = np.take_along_axis(softmax(logits), predicted[:, None, None], axis=2)[:, :, 0]
    measures = Measures(
        fit_responses(predicted, softmax(logits)), fit_strata(predicted, kept, OVERLAY_CLASSES, CLASSES)
    )
    measured = measured_by(measures, predicted, logits)
    fusion = fit_views(statistics, measures.statistics(statistics, measured))
    means = tuple(name for name in statistics if name != "stratified")
    early = []
    for passes, share in ((2, 0.5), (4, 0.8)):
        scales = fit_views(means, measures.statistics(means, measured[:, :passes]))
        scores = scales.scores(measures.statistics(means, measured[:, :passes]))
        early.append(Early(passes, scales, float(np.quantile(scores, share))))
    detector = Fused(CheckPlan(ROUNDS), measures, statistics, fusion, tuple(early), 0.0, block)
    scores = detector.scores(measured)
    boundary = float(np.quantile(scores, 1 - rate))
    return Fused(CheckPlan(ROUNDS), measures, statistics, fusion, tuple(early), boundary, block)


def checked(detector: Fused, predicted: int, logits: np.ndarray) -> tuple[Decision, Evidence]:
    """Check one input round by round, as the scheduler does."""
    evidence, decision = Evidence(), None
    while decision is None:
        chosen = np.array(detector.plan.next_round(evidence.passes))
        rows = logits[chosen]
        classes = np.full(len(chosen), predicted)
        evidence = detector.update(evidence, detector.measure(classes, chosen, rows, entropy_of_logits(rows)))
        decision = detector.decide(evidence)
    return decision, evidence


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_rejected_early_is_what_all_blends_reject(seed: int, triggered: bool) -> None:
    world = World(seed)
    detector = fitted(world)
    predicted, logits = world.logits(40, triggered)
    scores = detector.scores(measured_by(detector.measures, predicted, logits))
    for one, row, score in zip(predicted, logits, scores, strict=True):
        decision, evidence = checked(detector, one, row)
        if decision is Decision.SUSPICIOUS:
            assert score > detector.boundary
            assert detector.score(evidence) <= score + 1e-9
        elif evidence.passes == OVERLAYS:
            assert score <= detector.boundary
            assert detector.score(evidence) == pytest.approx(score)


def test_a_score_is_worked_out_once() -> None:
    """By the update: decision, score and p-value are the same, and read no measurement again."""
    world = World(5)
    detector, clean = fitted(world), np.arange(9.0)
    predicted, logits = world.logits(60)
    found = [checked(detector, *pair) for pair in zip(predicted, logits, strict=True)]
    assert {evidence.passes for _, evidence in found} >= {2, OVERLAYS}
    for decision, evidence in found:
        bare, anew = replace(evidence, sums=(), measured=()), replace(evidence, scored=None)
        assert detector.decide(bare) is detector.decide(anew) is decision
        assert detector.score(bare) == detector.score(anew)
        assert detector.p_value(bare, clean) == detector.p_value(anew, clean)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_outcomes_are_those_of_the_check_round_by_round(seed: int, triggered: bool) -> None:
    world = World(seed)
    detector = fitted(world, block=2.5)
    predicted, logits = world.logits(40, triggered)
    found, passes = outcomes(detector, measured_by(detector.measures, predicted, logits))
    one_by_one = [checked(detector, one, row) for one, row in zip(predicted, logits, strict=True)]
    assert passes.tolist() == [evidence.passes for _, evidence in one_by_one]
    beyond = {Decision.SUSPICIOUS, Decision.DOUBTFUL}
    assert found.tolist() == [decision in beyond for decision, _ in one_by_one]


def test_clean_inputs_are_accepted_early_and_triggered_ones_rejected_early() -> None:
    world = World(0)
    detector = fitted(world)
    clean, triggered = world.logits(500), world.logits(200, triggered=True)
    found, passes = outcomes(detector, measured_by(detector.measures, *clean))
    assert passes.mean() < 4
    assert found.mean() <= 0.05
    found, passes = outcomes(detector, measured_by(detector.measures, *triggered))
    assert found.all()
    assert passes.mean() < OVERLAYS


def test_between_two_boundaries_an_input_is_doubtful_and_is_not_rejected_early() -> None:
    world = World(1)
    detector = fitted(world, rate=0.2)
    predicted, logits = world.logits(500)
    scores = detector.scores(measured_by(detector.measures, predicted, logits))
    two = fitted(World(1), block=float(np.quantile(scores, 0.97)), rate=0.2)
    for one, row, score in zip(predicted, logits, scores, strict=True):
        decision, evidence = checked(two, one, row)
        if decision is Decision.DOUBTFUL:
            assert two.boundary < score <= (two.block_boundary or 0)
            assert evidence.passes == OVERLAYS
        assert (decision is Decision.SUSPICIOUS) <= (score > (two.block_boundary or 0))


@pytest.mark.parametrize("spoiled", ["a blend", "the input"])
def test_what_is_not_finite_fails(spoiled: str) -> None:
    world = World(2)
    detector = fitted(world)
    predicted, logits = world.logits(1)
    logits = logits.copy()
    if spoiled == "a blend":
        logits[0, 1, 2] = np.nan
    decision, _ = checked(detector, -1 if spoiled == "the input" else int(predicted[0]), logits[0])
    assert decision is Decision.FAILED


def test_p_values_are_one_of_the_accepted_and_small_of_the_rejected() -> None:
    world = World(3)
    detector = fitted(world)
    clean, triggered = world.logits(300), world.logits(20, triggered=True)
    values = np.sort(-detector.scores(measured_by(detector.measures, *clean)))
    early = [
        evidence
        for one, row in zip(*clean, strict=True)
        if (found := checked(detector, one, row))[0] is Decision.CLEAN
        and (evidence := found[1]).passes < OVERLAYS
    ]
    assert early
    assert {detector.p_value(evidence, values) for evidence in early} == {1.0}
    for one, row in zip(*triggered, strict=True):
        assert detector.p_value(checked(detector, one, row)[1], values) < 0.1


def test_a_probability_model_is_measured_as_its_logits_are() -> None:
    world = World(4)
    detector = fitted(world)
    predicted, logits = world.logits(1)
    classes, each = np.full(OVERLAYS, predicted[0]), np.arange(OVERLAYS)
    entropies = entropy_of_logits(logits[0])
    of_logits = detector.measure(classes, each, logits[0], entropies)
    other = Fused(
        detector.plan,
        detector.measures,
        detector.statistics,
        detector.fusion,
        detector.early,
        detector.boundary,
        takes_logits=False,
    )
    of_probabilities = other.measure(classes, each, softmax(logits[0]), entropies)
    np.testing.assert_array_equal(of_logits, of_probabilities)


def test_without_strata_the_other_statistics_serve() -> None:
    world = World(5)
    predicted, logits = world.logits(50)
    measures = Measures(fit_responses(predicted, softmax(logits)), None)
    measured = measured_by(measures, predicted, logits)
    assert measures.statistics(("departure", "strip"), measured).shape == (50, 2)
    with pytest.raises(ValueError, match="two classes"):
        measures.statistics(("stratified",), measured)


def test_strip_as_a_statistic_is_minus_the_mean_entropy() -> None:
    world = World(6)
    predicted, logits = world.logits(5)
    measures = Measures(fit_responses(predicted, softmax(logits)), None)
    strip = measures.statistics(("strip",), measured_by(measures, predicted, logits))[:, 0]
    np.testing.assert_allclose(strip, -entropy_of_logits(logits).mean(axis=1), rtol=1e-6)


def test_a_score_is_the_highest_standardised_statistic() -> None:
    world = World(7)
    predicted, logits = world.logits(30)
    measures = Measures(fit_responses(predicted, softmax(logits)), None)
    measured = measured_by(measures, predicted, logits)
    fusion = Fusion(np.array([0.1, 1.0]), np.array([0.2, 3.0]))
    detector = Fused(CheckPlan(ROUNDS), measures, ("departure", "surprise"), fusion, (), 1.0)
    by_hand = np.maximum((measured[:, :, 1].mean(1) - 0.1) / 0.2, (measured[:, :, 2].mean(1) - 1.0) / 3.0)
    np.testing.assert_allclose(detector.scores(measured), by_hand)
