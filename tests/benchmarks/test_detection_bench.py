"""The benchmark of detection: its parts, its figures, and the page made of its records."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.detection.answers import Answers
from benchmarks.detection.figures import auroc, boundary_of, figures, interval
from benchmarks.detection.images import FIT, Pool, Sizes, drawn
from benchmarks.detection.render import RESULTS, read_records, render
from benchmarks.detection.scores import ordered, scored
from benchmarks.detection.victims import VICTIMS, load_victim
from benchmarks.zoo.subjects import names
from guard.detection.base import Decision

CLASSES, OVERLAYS = 4, 8


def some_answers(triggered: int) -> Answers:
    """Inputs whose blends answer by overlay, but for those with a trigger, which keep their class."""
    random = np.random.default_rng(0)
    counts = (600, 400, 500, triggered)
    classes = np.arange(sum(counts)) % CLASSES
    of_overlays = np.arange(OVERLAYS) % CLASSES
    logits = random.normal(0, 0.3, (sum(counts), OVERLAYS, CLASSES))
    logits[:, np.arange(OVERLAYS), of_overlays] += 2
    logits[-triggered:] += 6 * np.eye(CLASSES)[classes[-triggered:]][:, None] if triggered else 0
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    alone = np.eye(CLASSES)[classes] * 0.9 + 0.1 / CLASSES
    return Answers(
        alone.astype(np.float32), shares.astype(np.float32), of_overlays, np.arange(OVERLAYS), counts
    )


def test_the_parts_of_a_pool_share_no_image_and_overlays_are_balanced() -> None:
    labels = np.arange(6000) % 10
    pool = Pool(np.zeros((6000, 1, 1, 1), np.float32), labels, also_fresh=200)
    parts = drawn(pool, Sizes(overlays=30, calibration=2000, fresh=1500), seed=3)
    clean = np.concatenate([parts.overlays, parts.fit, parts.calibration, parts.fresh, parts.more])
    assert sorted(clean) == list(range(6000))
    assert (len(parts.fit), len(parts.calibration), len(parts.fresh)) == (FIT, 2000, 1500)
    assert (np.bincount(labels[parts.overlays]) == 3).all()
    sixteen = drawn(pool, Sizes(overlays=16), seed=3).overlays
    assert sorted(np.bincount(labels[sixteen])) == [1] * 4 + [2] * 6
    assert set(parts.stamped) <= set(parts.more)
    assert set(parts.more) >= set(range(5800, 6000))


def test_an_interval_is_clopper_and_pearsons() -> None:
    assert interval(0, 100) == pytest.approx([0.0, 1 - 0.025 ** (1 / 100)])
    low, high = interval(30, 3000)
    assert low == pytest.approx(0.006757, abs=1e-5)
    assert high == pytest.approx(0.014245, abs=1e-5)


def test_auroc_counts_ties_half_and_a_boundary_needs_images_enough() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)
    assert auroc(np.array([0.0]), np.array([])) is None
    assert boundary_of(np.arange(298.0), 0.01) is None
    assert boundary_of(np.arange(299.0), 0.01) == 298.0


def test_inputs_that_keep_their_class_are_told_from_those_that_follow_the_overlays() -> None:
    answers = ordered(some_answers(triggered=50))
    rows = figures(answers, scored(answers), lambda detector: [Decision.CLEAN] * 500)
    assert rows["fused"]["auroc"] == 1.0
    early = rows["fused, accepting early"]
    assert early["tpr at 0.01"] == 1.0
    assert early["fresh"] == 1000
    assert early["frr at 0.01"] <= rows["fused"]["frr at 0.01"] / 2
    assert early["passes clean"] < OVERLAYS
    assert rows["max-softmax"]["auroc"] == pytest.approx(0.5)


def test_a_detector_that_rejects_further_clean_images_is_said_to() -> None:
    answers = ordered(some_answers(triggered=0))
    rows = figures(answers, scored(answers), lambda detector: [Decision.DOUBTFUL] * 500)
    assert rows["fused, accepting early"]["frr at 0.01"] >= 0.5
    assert rows["fused"]["auroc"] is None


def test_copies_of_a_patch_are_stamped_on_the_same_network() -> None:
    one, nine = load_victim("badnets"), load_victim("badnets x9")
    assert one.model == nine.model
    images = np.zeros((1, 3, 32, 32), np.float32)
    assert one.attack is not None
    assert nine.attack is not None
    changed = [(attack.stamp(images) != 0).any(axis=1).sum() for attack in (one.attack, nine.attack)]
    assert changed[1] == 9 * changed[0]


def test_the_committed_page_is_the_one_of_the_committed_records() -> None:
    assert RESULTS.with_suffix(".md").read_text() == render()


def test_every_record_is_of_a_victim_and_rejects_few_clean_inputs() -> None:
    made = {victim.partition(" x")[0] for victim in VICTIMS} & set(names())
    records = read_records()
    assert {one["subject"].partition(" x")[0] for one in records} <= made
    for one in records:
        assert one["scores"]["fused, accepting early"]["frr interval at 0.01"][0] <= 0.01, one["subject"]


def test_curves_are_there_and_small() -> None:
    pictures = sorted((RESULTS / "curves").glob("*.png"))
    assert pictures
    assert all(path.stat().st_size < 150_000 for path in pictures)
    page = Path(f"{RESULTS}.md").read_text()
    assert all(f"detection/curves/{path.name}" in page for path in pictures)


def test_records_are_plain_json() -> None:
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["sizes"][0] == FIT
