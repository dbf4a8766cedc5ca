"""Attack, drift and calm told apart on simulated streams."""

from __future__ import annotations

import numpy as np
import pytest

from guard.detection.concentration import ClassCounts
from guard.detection.cusum import normal_score
from guard.detection.drift import Budget, DriftMonitor, DriftState

CLASSES, TARGET, FRR = 10, 3, 0.008
REFERENCES = 999


def a_monitor(certified: bool = True) -> DriftMonitor:
    return DriftMonitor(
        Budget(0.01, certified),
        classes=CLASSES,
        references=REFERENCES,
        false_alarm_rate=1e-3,
        cusum_limit=12.0,
    )


def clean(monitor: DriftMonitor, inputs: int, generator: np.random.Generator, frr: float = FRR) -> None:
    labels = generator.integers(0, CLASSES, inputs).tolist()
    for label, suspicious in zip(labels, (generator.random(inputs) < frr).tolist(), strict=True):
        monitor.checked(suspicious, label)


def attacked(monitor: DriftMonitor, inputs: int, share: float, generator: np.random.Generator) -> None:
    for _ in range(inputs):
        if generator.random() < share:
            monitor.checked(True, TARGET)
        else:
            clean(monitor, 1, generator)


def measure(monitor: DriftMonitor, inputs: int, shift: float, generator: np.random.Generator) -> None:
    """Feed exact p-values of inputs whose scores moved by so many standard deviations."""
    steps = np.array([normal_score((i + 1) / (REFERENCES + 1), REFERENCES) for i in range(REFERENCES + 1)])
    for z in generator.standard_normal(inputs) + shift:
        monitor.measured((1 + min(REFERENCES, int(np.searchsorted(steps, z)))) / (REFERENCES + 1))


def test_clean_traffic_is_calm() -> None:
    generator = np.random.default_rng(1)
    monitor = a_monitor()
    clean(monitor, 20_000, generator)
    measure(monitor, 3000, 0.0, generator)
    assert monitor.finding.state is DriftState.CALM
    assert monitor.finding.reason == "inputs look like those of the calibration"


@pytest.mark.parametrize("before", [0, 10_000])
@pytest.mark.parametrize(("share", "inputs"), [(0.03, 3000), (0.1, 500), (0.5, 60), (1.0, 20)])
def test_a_trigger_s_traffic_is_an_attack_be_it_rare_or_all_there_is(
    before: int, share: float, inputs: int
) -> None:
    generator = np.random.default_rng(2)
    monitor = a_monitor()
    clean(monitor, before, generator)
    attacked(monitor, inputs, share, generator)
    assert monitor.finding.state is DriftState.ATTACK
    assert "1.00% certified" in monitor.finding.reason
    assert f"in class {TARGET}," in monitor.finding.reason


def test_a_class_that_is_most_of_the_traffic_is_no_attack_by_itself() -> None:
    generator = np.random.default_rng(5)
    monitor = a_monitor()
    for _ in range(4000):
        label = TARGET if generator.random() < 0.9 else int(generator.integers(0, CLASSES))
        monitor.checked(bool(generator.random() < 0.05), label)
    assert monitor.finding.state is DriftState.DRIFT


@pytest.mark.parametrize(("frr", "inputs"), [(0.03, 3000), (0.2, 300)])
def test_suspicious_inputs_of_all_classes_are_a_drift(frr: float, inputs: int) -> None:
    generator = np.random.default_rng(2)
    monitor = a_monitor()
    clean(monitor, 10_000, generator)
    clean(monitor, inputs, generator, frr)
    assert monitor.finding.state is DriftState.DRIFT
    assert "in no class of their own" in monitor.finding.reason


def test_few_suspicious_inputs_of_one_class_are_not_said_to_be_of_none() -> None:
    monitor = a_monitor()
    reasons = []
    for _ in range(20):
        monitor.checked(True, TARGET)
        if monitor.finding.state is DriftState.DRIFT:
            reasons.append(monitor.finding.reason)
    assert reasons
    assert all("too few so far to tell whether they are of one class (100% of" in said for said in reasons)
    assert monitor.finding.state is DriftState.ATTACK


def test_a_drift_that_strikes_some_classes_harder_is_still_a_drift() -> None:
    generator = np.random.default_rng(6)
    monitor = a_monitor()
    rates = 0.05 * np.linspace(0.1, 1.9, CLASSES)
    for _ in range(4000):
        label = int(generator.integers(0, CLASSES))
        monitor.checked(bool(generator.random() < rates[label]), label)
    assert monitor.finding.state is DriftState.DRIFT


@pytest.mark.parametrize(("shift", "word"), [(-1.0, "more"), (1.0, "less")])
def test_a_distribution_that_moved_is_a_drift_either_way_with_no_more_rejections(
    shift: float, word: str
) -> None:
    generator = np.random.default_rng(7)
    monitor = a_monitor()
    clean(monitor, 1000, generator)
    states = []
    for inputs, by in ((60, shift), (200, 0.0)):
        measure(monitor, inputs, by, generator)
        states.append((monitor.finding.state, f"look {word} suspicious" in monitor.finding.reason))
    assert states == [(DriftState.DRIFT, True), (DriftState.CALM, False)]


def test_an_attack_stays_one_until_its_evidence_is_gone() -> None:
    generator = np.random.default_rng(9)
    monitor = a_monitor()
    attacked(monitor, 400, 0.2, generator)
    states = []
    for _ in range(3000):
        clean(monitor, 1, generator)
        states.append(monitor.finding.state)
    last = max(i for i, state in enumerate(states) if state is not DriftState.CALM)
    assert set(states[: last + 1]) == {DriftState.ATTACK}
    assert states[-1] is DriftState.CALM


def test_inputs_of_classes_that_are_not_known_count_all_the_same() -> None:
    monitor = a_monitor(certified=False)
    for _ in range(30):
        monitor.checked(True, None)
    assert monitor.finding.state is DriftState.DRIFT
    assert monitor.finding.reason == (
        "more inputs are suspicious than the 1.00% asked for, not certified, of classes that are not known"
    )


def test_concentration_by_chance_is_as_rare_as_promised() -> None:
    generator = np.random.default_rng(10)
    found = 0
    for _ in range(200):
        counts = ClassCounts(CLASSES, 0.05)
        for label in generator.integers(0, CLASSES, 200).tolist():
            counts.add(label, False)
        for label in generator.integers(0, CLASSES, 15).tolist():
            counts.add(label, True)
        where = counts.concentration()
        found += where is not None and where.significant
    assert found <= 10


def test_counts_fade_and_survive_their_own_rescaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.detection.concentration._HEAVY", 1e3)  # so that it happens often
    counts = ClassCounts(2, 0.01)
    for _ in range(300):
        counts.add(0, True)
    for _ in range(30_000):
        counts.add(1, False)
    for _ in range(30):
        counts.add(1, True)
    where = counts.concentration()
    assert where is not None
    assert where.label == 1
    assert where.share_of_suspicious == pytest.approx(1.0)
