"""The central claim: what is served scores exactly as it was calibrated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import calibrate
from guard.artifact import read_artifact
from guard.detection.base import Decision
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip, mean_entropies
from guard.runtime.loader import RuntimeOptions, load_model
from guard.runtime.scheduler import Scheduler
from tests.calibration.calibration_subjects import N_OVERLAYS, model_rows, options_for, pixels
from tests.tiny_models import linear_classifier

ODD = 7


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
async def test_calibration_images_are_scored_alike_when_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, softmax: bool
) -> None:
    monkeypatch.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")
    report = calibrate(options_for(tmp_path, linear_classifier(gain=0.5, softmax=softmax), frr=0.05))
    profile, split = report.findings.profile, report.findings.split
    model = load_model("tiny", report.artifact, RuntimeOptions(device="cpu", threads=1))
    one_round = Strip(CheckPlan((N_OVERLAYS,)), profile.boundary.boundary_bits)  # never stops early
    scheduler = Scheduler(model.classifier, one_round, max_batch_pairs=13, max_queue_rows=1024)
    rows = model_rows(read_artifact(report.artifact), pixels())[split.calibration]
    try:
        submissions = [
            scheduler.submit(rows[start : start + ODD], np.ones(len(rows[start : start + ODD]), np.bool_))
            for start in range(0, len(rows), ODD)
        ]
        ended = await asyncio.wait_for(asyncio.gather(*(one.rows for one in submissions)), 60)
        alone = model.classifier.check(rows, *every_pair(len(rows)))[1].reshape(-1, N_OVERLAYS)
    finally:
        scheduler.close()
        model.close()

    states = [row for rows_of_one in ended for row in rows_of_one]
    scores = np.array([row.evidence.entropy_sum / N_OVERLAYS for row in states])
    clean = np.array(profile.calibration.clean_entropies_bits)
    np.testing.assert_allclose(np.sort(scores), clean, rtol=0, atol=1e-6)
    rank = profile.boundary.rank
    assert rank is not None
    assert rank > 1
    rejected = sum(row.decision is Decision.SUSPICIOUS for row in states)
    assert rejected == int((clean < profile.boundary.boundary_bits).sum())
    assert 1 <= rejected <= rank - 1
    # The overlays lie in the artifact in the order that was scored.
    np.testing.assert_allclose(mean_entropies(alone.T), report.findings.overlay_entropies, rtol=0, atol=1e-6)


def every_pair(n: int) -> tuple[np.ndarray, np.ndarray]:
    image, overlay = np.divmod(np.arange(n * N_OVERLAYS, dtype=np.int64), N_OVERLAYS)
    return image, overlay


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
def test_the_probe_is_of_clean_images_that_are_no_overlays_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, softmax: bool
) -> None:
    monkeypatch.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")
    report = calibrate(options_for(tmp_path, linear_classifier(gain=0.5, softmax=softmax), frr=0.05))
    artifact, split = read_artifact(report.artifact), report.findings.split
    probe = artifact.probe
    assert probe is not None

    overlays = {overlay.tobytes() for overlay in artifact.overlays}
    clean = [row.tobytes() for row in model_rows(artifact, pixels())[split.calibration]]
    where = [clean.index(image.tobytes()) for image in probe.images]
    assert (where[0], where[-1], len(set(where))) == (0, len(clean) - 1, 4)
    assert overlays.isdisjoint(image.tobytes() for image in probe.images)
    scores = np.array(artifact.profile.calibration.clean_entropies_bits)
    assert all(np.isclose(scores, entropy, rtol=0, atol=1e-9).any() for entropy in probe.mean_entropy_bits)

    model = load_model("tiny", report.artifact, RuntimeOptions(device="cpu", threads=1, max_batch_pairs=7))
    model.close()
    assert model.probed is True
