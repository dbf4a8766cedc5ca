"""Classes that fell, against p-values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.evaluation.fallen import Fallen, adjusted_by_holm, fallen_classes, fallen_note


def pairs(*classes: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions before and after, and labels: of each class, right twice, lost, gained, wrong twice."""
    labels = np.repeat(np.arange(len(classes)), [sum(counts) for counts in classes])
    was = np.concatenate([np.repeat([True, True, False, False], counts) for counts in classes])
    now = np.concatenate([np.repeat([True, False, True, False], counts) for counts in classes])
    wrong = labels + 1
    return np.where(was, labels, wrong), np.where(now, labels, wrong), labels


# Class 0 lost 11 and gained none: 2^-11 = 0.00048828. Class 1 lost 8 of 10 that changed:
# (45 + 10 + 1) / 1024 = 0.0546875. Class 2 did not change: 1. Holm: 3 * 2^-11, 2 * 0.0546875, 1.
def test_a_class_that_lost_nearly_all_its_images_is_named_and_others_are_not() -> None:
    given = pairs((1, 11, 0, 2), (5, 8, 2, 0), (20, 0, 0, 0))
    (only,) = fallen_classes(*given)
    assert (only.label, only.before, only.after, only.of) == (0, 12, 1, 14)
    assert only.p_value == pytest.approx(3 / 2048)
    both = fallen_classes(*given, level=0.11)
    assert [one.label for one in both] == [0, 1]
    assert both[1].p_value == pytest.approx(0.109375)
    assert fallen_classes(*given, level=3 / 2048) == ()


# 43 classes, as of traffic signs: 43 * 2^-11 = 0.021 is still enough, 43 * 2^-9 = 0.084 is not.
@pytest.mark.parametrize(("lost", "named"), [(11, True), (9, False)])
def test_many_classes_ask_for_more(lost: int, named: bool) -> None:
    given = pairs((1, lost, 0, 2), *[(14, 0, 0, 0)] * 42)
    assert bool(fallen_classes(*given)) == named
    assert fallen_classes(*pairs((1, lost, 0, 2)))[0].p_value == 0.5**lost


def test_a_class_that_rose_did_not_fall() -> None:
    assert fallen_classes(*pairs((3, 0, 30, 0))) == ()


def test_classes_without_images_count_for_nothing() -> None:
    before, after, labels = pairs((1, 11, 0, 2))
    assert fallen_classes(before + 7, after + 7, labels + 7) == (Fallen(7, 12, 1, 14, 0.5**11),)


# Holm's own steps: of 0.01, 0.02, 0.03, 0.2 by 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.2; none falls again.
def test_holms_p_values_never_fall_and_never_pass_one() -> None:
    assert adjusted_by_holm(np.array([0.2, 0.02, 0.03, 0.01])).tolist() == pytest.approx(
        [0.2, 0.06, 0.06, 0.04]
    )
    assert adjusted_by_holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_chance_names_a_class_no_more_often_than_the_level() -> None:
    generator, named, runs = np.random.default_rng(0), 0, 400
    labels = np.repeat(np.arange(10), 30)
    for _ in range(runs):
        was, now = generator.random((2, 300)) < 0.7
        named += bool(fallen_classes(np.where(was, labels, 99), np.where(now, labels, 99), labels))
    assert named / runs <= 0.05


def test_the_line_names_classes_and_counts() -> None:
    fallen = [Fallen(label, 12, 1, 14, 0.001 * (label + 1)) for label in range(10)]
    assert fallen_note(fallen[:1], ["st\nop"]) == (
        "accuracy fell by more than chance on class 0 st\\nop (12 to 1 of 14); exact paired tests over all "
        "classes, largest p 0.001"
    )
    line = fallen_note(fallen, None)
    assert "7 (12 to 1 of 14) and 2 more; " in line
    assert line.endswith("largest p 0.01")
    assert fallen_note([], None) == ""
