"""What the fused detector was calibrated to is what is served, whatever the batches are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import calibrate
from calibration.errors import OptionError, TooFewImagesError
from calibration.report import CalibrationReport
from guard.artifact import read_artifact
from guard.detection.base import Decision
from guard.detection.fused import Fused, outcomes
from guard.errors import ArtifactError, MissingFileError, ProfileError
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from tests.calibration.calibration_subjects import N_OVERLAYS, model_rows, options_for, pixels
from tests.guard.artifact_edits import replace_file
from tests.tiny_models import linear_classifier

IMAGES = 900
BLOCK = {"frr": 0.05, "block_frr": 0.02}


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    for picture in ("entropy_picture", "score_picture"):
        monkeypatch.setattr(f"calibration.calibrate.{picture}", lambda *_: b"a picture")


def calibrated(folder: Path, softmax: bool = False, **changes: object) -> CalibrationReport:
    model = linear_classifier(gain=0.5, softmax=softmax)
    options = options_for(folder, model, **{"detector": "fused", "frr": 0.05, **changes})
    np.savez(options.data, images=pixels(IMAGES))
    return calibrate(options)


async def served(model: LoadedModel, rows: np.ndarray, at_once: int) -> list[Row]:
    """Return the rows' states after the check that serves."""
    submissions = [
        model.scheduler.submit(part, np.ones(len(part), np.bool_))
        for part in np.array_split(rows, len(rows) // at_once)
    ]
    ended = await asyncio.wait_for(asyncio.gather(*(one.rows for one in submissions)), 60)
    return [row for states in ended for row in states]


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
async def test_calibration_images_are_decided_alike_when_served(tmp_path: Path, softmax: bool) -> None:
    report = calibrated(tmp_path, softmax, **BLOCK)
    profile, split = report.findings.profile, report.findings.split
    record = profile.fused
    assert record is not None
    assert record.block is not None
    model = load_model("tiny", report.artifact, RuntimeOptions(device="cpu", threads=1, max_batch_pairs=13))
    rows = model_rows(read_artifact(report.artifact), pixels(IMAGES))[split.calibration]
    try:
        states = await served(model, rows, 7)
        spent = np.array([row.evidence.passes for row in states])
        whole = [row for row in states if row.evidence.passes == N_OVERLAYS]
        scores = [model.detector.score(row.evidence) for row in whole]
        clean = np.array(record.clean_scores)
        assert np.abs(clean[None] - np.array(scores)[:, None]).min(axis=1).max() < 1e-4
        beyond = [row.decision in {Decision.DOUBTFUL, Decision.SUSPICIOUS} for row in states]
        assert sum(beyond) <= record.boundary.rank - 1
        blocked = [row.decision is Decision.SUSPICIOUS for row in states]
        assert sum(blocked) <= record.block.rank - 1
        assert spent.mean() == pytest.approx(profile.calibration.mean_passes_clean, abs=0.05)
        assert spent.mean() < N_OVERLAYS
        p_values = [model.detector.p_value(row.evidence, model.clean_values) for row in whole]
        assert all(0 < p <= 1 for p in p_values)
    finally:
        model.close()


async def test_batches_change_no_score(tmp_path: Path) -> None:
    report = calibrated(tmp_path)
    rows = model_rows(read_artifact(report.artifact), pixels(60, seed=8))
    found = []
    for max_batch_pairs, at_once in ((3, 1), (64, 20)):
        options = RuntimeOptions(device="cpu", threads=1, max_batch_pairs=max_batch_pairs)
        model = load_model("tiny", report.artifact, options)
        try:
            states = await served(model, rows, at_once)
            found.append([(row.decision, row.evidence.passes) for row in states])
            found.append([model.detector.score(row.evidence) for row in states])
        finally:
            model.close()
    assert found[0] == found[2]
    np.testing.assert_allclose(found[1], found[3], atol=1e-5)


def test_no_image_that_was_fitted_on_calibrates_and_overlays_are_even(tmp_path: Path) -> None:
    report = calibrated(tmp_path)
    split, outputs = report.findings.split, report.findings.outputs
    parts = [set(part.tolist()) for part in (split.overlays, split.fit, split.calibration)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == IMAGES
    assert len(split.fit) == 300
    predicted = outputs.argmax(axis=1)[split.overlays]
    assert np.bincount(predicted).max() == 1, "eight overlays, ten classes in the pool: none twice"
    fused = report.findings.profile.fused
    assert fused is not None
    assert (fused.n_fitted, fused.boundary.n_scores) == (300, IMAGES - 300 - N_OVERLAYS)


def test_what_is_calibrated_is_what_the_detector_makes_of_all_blends(tmp_path: Path) -> None:
    """The rate of the procedure on calibration images is at most that of all N blends."""
    report = calibrated(tmp_path)
    artifact = read_artifact(report.artifact)
    model = load_model("tiny", report.artifact, RuntimeOptions(device="cpu", threads=1))
    try:
        detector = model.detector
        assert isinstance(detector, Fused)
        rows = model_rows(artifact, pixels(IMAGES))[report.findings.split.calibration]
        image, overlay = np.divmod(np.arange(len(rows) * N_OVERLAYS, dtype=np.int64), N_OVERLAYS)
        logits, bits = model.classifier.check(rows, image, overlay)
        predicted = model.classifier.logits(rows).argmax(axis=1)[image]
        measured = detector.measure(predicted, overlay, logits, bits).reshape(len(rows), N_OVERLAYS, 4)
        clean = np.sort(detector.scores(measured))
        record = artifact.profile.fused
        assert record is not None
        np.testing.assert_allclose(clean, record.clean_scores, atol=1e-5)
        found, _ = outcomes(detector, measured)
        assert found.sum() <= (clean > detector.boundary).sum() <= record.boundary.rank - 1
    finally:
        model.close()


def test_the_report_names_detector_boundary_and_tiers(tmp_path: Path) -> None:
    text = "\n".join(calibrated(tmp_path, **BLOCK).lines())
    assert "fused (departure, entropy, stratified, strip), fitted on 300 other images" in text
    assert "refused from" in text


def test_auto_takes_the_fused_one_where_there_are_images_enough_and_says_why_not(tmp_path: Path) -> None:
    for folder in ("enough", "few"):
        (tmp_path / folder).mkdir()
    enough = calibrated(tmp_path / "enough", detector="auto")
    assert enough.findings.profile.check.detector == "fused"
    few = calibrated(tmp_path / "few", detector="auto", frr=0.01, block_frr=0.005)
    assert few.findings.profile.check.detector == "strip"
    assert "strip (fused: it takes 906 images, and there are 900)" in "\n".join(few.lines())
    assert few.findings.profile.block is not None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"frr": 0.005}, TooFewImagesError, "--detector fused: it takes 906 images, and there are 900"),
        ({"threshold": "normal"}, OptionError, "--threshold normal was asked for"),
        ({"overlays": 4}, OptionError, "it takes 8 overlays at least, and --overlays is 4"),
        ({"block_frr": 0.05}, OptionError, "--block-frr 0.05: expected a rate between 0 and --frr"),
        ({"block_frr": 0.001}, TooFewImagesError, "2995 to certify a false-rejection rate of 0.100%"),
    ],
)
def test_what_cannot_be_is_refused_with_what_it_takes(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibrated(tmp_path, **changes)


def spoiled(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if name == "no expected":
        return {key: value for key, value in arrays.items() if key != "expected"}
    if name == "half the strata":
        return {key: arrays[key] for key in ("expected", "overlay_classes")}
    changed = {key: value.copy() for key, value in arrays.items()}
    if name == "other shape":
        changed["expected"] = changed["expected"][:, :-1]
    if name == "not finite":
        changed["strata_means"][0, 0] = np.nan
    if name == "no probabilities":
        changed["expected"] *= 2
    if name == "a class too many":
        changed["overlay_classes"][0] = 10
    if name == "no spread":
        changed["strata_spreads"][0] = 0
    return changed


@pytest.mark.parametrize(
    "name",
    [
        "no expected",
        "half the strata",
        "other shape",
        "not finite",
        "no probabilities",
        "a class too many",
        "no spread",
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, name: str) -> None:
    artifact = calibrated(tmp_path).artifact
    with np.load(artifact / "fused.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    np.savez(tmp_path / "spoiled.npz", **spoiled(name, arrays))
    replace_file(artifact, "fused.npz", (tmp_path / "spoiled.npz").read_bytes())
    with pytest.raises(ProfileError, match=r"fused\.npz.*calibrate again"):
        read_artifact(artifact)


def test_tables_that_are_missing_or_no_archive_are_refused(tmp_path: Path) -> None:
    artifact = calibrated(tmp_path).artifact
    replace_file(artifact, "fused.npz", b"no archive")
    with pytest.raises(ArtifactError, match=r"fused\.npz .*archive"):
        read_artifact(artifact)
    (artifact / "fused.npz").unlink()
    with pytest.raises(MissingFileError, match=r"fused\.npz"):
        read_artifact(artifact)
