"""What the fused detector was calibrated to see inside the model is what it sees when it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.calibrate import calibrate
from calibration.heal.options import heal_options
from calibration.heal.subject import read_subject
from calibration.report import CalibrationReport
from guard.detection.base import Decision
from guard.errors import ProfileError
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from tests.calibration.calibration_subjects import N_OVERLAYS, options_for
from tests.calibration.capability_models import clean_images, linear_net, numb_net, residual_net

IMAGES = 800
RUNTIME = RuntimeOptions(device="cpu", threads=1, max_batch_pairs=13)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("entropy_picture", "score_picture"):
        monkeypatch.setattr(f"calibration.calibrate.{name}", lambda *_: b"a picture")


def stored(images: np.ndarray) -> np.ndarray:
    return np.asarray((images.transpose(0, 2, 3, 1) * 255).round(), np.uint8)


def calibrated(folder: Path, model: onnx.ModelProto, **changes: object) -> CalibrationReport:
    options = options_for(folder, model, **{"detector": "fused", "frr": 0.05, **changes})
    np.savez(options.data, images=stored(clean_images(IMAGES)))
    return calibrate(options)


def rows_of(images: np.ndarray) -> np.ndarray:
    """Return images as they were stored, as the model takes them."""
    return (stored(images).astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()


async def served(model: LoadedModel, rows: np.ndarray, at_once: int) -> list[Row]:
    submissions = [
        model.scheduler.submit(part, np.ones(len(part), np.bool_))
        for part in np.array_split(rows, len(rows) // at_once)
    ]
    ended = await asyncio.wait_for(asyncio.gather(*(one.rows for one in submissions)), 60)
    return [row for states in ended for row in states]


async def test_calibration_images_are_scored_alike_when_served(tmp_path: Path) -> None:
    report = calibrated(tmp_path, residual_net(3))
    profile, split = report.findings.profile, report.findings.split
    record = profile.fused
    assert record is not None
    assert record.statistics[-1] == "layers"
    assert [layer.name for layer in record.layers] == ["a5_relu", "h6"]
    model = load_model("tiny", report.artifact, RUNTIME)
    try:
        states = await served(model, rows_of(clean_images(IMAGES))[split.calibration], 7)
        whole = [row for row in states if row.evidence.passes == N_OVERLAYS]
        scores = np.array([model.detector.score(row.evidence) for row in whole])
        clean = np.array(record.clean_scores)
        assert np.abs(clean[None] - scores[:, None]).min(axis=1).max() < 1e-3
        rejected = sum(row.decision is Decision.SUSPICIOUS for row in states)
        assert rejected <= record.boundary.rank - 1
        spent = np.mean([row.evidence.passes for row in states])
        assert spent == pytest.approx(profile.calibration.mean_passes_clean, abs=0.05)
    finally:
        model.close()


async def test_an_input_unlike_its_class_inside_is_rejected_in_the_first_round(tmp_path: Path) -> None:
    """Noise is given some class, and no clean image of it looks like that inside."""
    report = calibrated(tmp_path, residual_net(3))
    noise = np.random.default_rng(0).uniform(0, 1, (40, 3, 8, 8))
    model = load_model("tiny", report.artifact, RUNTIME)
    try:
        states = await served(model, rows_of(noise), 5)
        fresh = await served(model, rows_of(clean_images(40, seed=5)), 5)
    finally:
        model.close()
    first = report.findings.profile.check.rounds[0]
    caught = [row.decision is Decision.SUSPICIOUS and row.evidence.passes == first for row in states]
    assert np.mean(caught) > 0.8
    assert np.mean([row.decision is Decision.SUSPICIOUS for row in fresh]) < 0.2


@pytest.mark.parametrize(
    ("model", "reason"),
    [(linear_net, "no activation of a convolution"), (numb_net, "hardly tell the model's own classes apart")],
)
def test_a_model_that_does_not_allow_it_is_calibrated_without_and_told_why(
    tmp_path: Path, model: object, reason: str
) -> None:
    report = calibrated(tmp_path, model())  # type: ignore[operator]
    fused = report.findings.profile.fused
    assert fused is not None
    assert (fused.layers, "layers" in fused.statistics) == ((), False)
    text = "\n".join(report.lines())
    assert f"layers are off: {report.findings.why_no_layers}" in text
    assert reason in text


def test_layers_are_left_alone_where_that_is_asked(tmp_path: Path) -> None:
    report = calibrated(tmp_path, residual_net(3), layers="off")
    fused = report.findings.profile.fused
    assert fused is not None
    assert (fused.layers, report.findings.why_no_layers) == ((), "")
    assert "(departure, entropy, stratified, strip), fitted" in "\n".join(report.lines())


def test_a_model_server_cannot_serve_what_looks_inside_the_model(tmp_path: Path) -> None:
    report = calibrated(tmp_path, residual_net(3))
    with pytest.raises(ProfileError, match="calibrate it with --layers off, or run the model here"):
        load_model("tiny", report.artifact, RUNTIME, predict_by=lambda _profile, _version: lambda rows: rows)


@pytest.mark.parametrize("layers", ["auto", "off"])
def test_a_healed_version_looks_inside_the_model_where_the_last_one_did(tmp_path: Path, layers: str) -> None:
    report = calibrated(tmp_path, residual_net(3), layers=layers)
    pytest.importorskip("torch")
    options = heal_options({"model": str(report.artifact.parent), "data": "d.npz", "out": str(tmp_path)})
    kept = read_subject(options).check
    assert (kept.detector, kept.layers) == ("auto", layers)
