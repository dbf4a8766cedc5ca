"""Canaries: planted in a copy of a small real network, asked by the check that serves, chosen by, told."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("torch")

from calibration import progress
from calibration.calibrate import calibrate
from calibration.canaries import job
from calibration.capabilities.switch import LEAST_AUROC
from calibration.errors import DataError, OptionError
from calibration.fused_fit import DEFAULT_STATISTICS
from calibration.options import CalibrateOptions
from calibration.preprocessing import Transform
from calibration.report import CalibrationReport
from guard.artifact import read_artifact
from tests.calibration.repair_files import backdoored, images_of, write_scan

COUNT, OVERLAYS = 1100, 16
FITTED = 748
"""299 held out of it certify 1 %, and those are four tenths."""


def options_for(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> CalibrateOptions:
    onnx.save(model or backdoored(), folder / "model.onnx")
    images, labels = images_of(COUNT, seed=3)
    np.savez(folder / "data.npz", images=images, labels=labels)
    usual = {"overlays": OVERLAYS, "blend": "auto", "layers": "off", "capabilities": (), "seed": 2}
    running = {"device": "cpu", "threads": 1, "quiet": True}
    return CalibrateOptions(
        model=folder / "model.onnx",
        data=folder / "data.npz",
        out=folder / "repository" / "small",
        **{**usual, **running, **changes},
    )


@pytest.fixture(autouse=True)
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; the picture's own tests draw it."""
    for name in ("entropy_picture", "score_picture"):
        monkeypatch.setattr(f"calibration.calibrate.{name}", lambda *_: b"a picture")


def told(report: CalibrationReport) -> dict[str, Any]:
    canaries = json.loads((report.artifact / "report.json").read_text())["canaries"]
    assert isinstance(canaries, dict)
    return canaries


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> CalibrationReport:
    return calibrate(
        options_for(
            tmp_path_factory.mktemp("planted"),
            canaries=("badnets",),
            capabilities=("teco_lite",),
            layers="auto",
        )
    )


def test_a_patch_is_planted_in_a_copy_and_leaves_its_accuracy(planted: CalibrationReport) -> None:
    (canary,) = told(planted)["canaries"]
    assert canary["kind"] == "badnets"
    assert canary["why_not"] == ""
    assert canary["asr"] >= job.LEAST_ASR
    assert canary["accuracy"] >= canary["accuracy_before"] - job.MOST_LOST


def test_the_profile_has_what_was_chosen_and_the_model_is_the_one_given(planted: CalibrationReport) -> None:
    artifact, chosen = read_artifact(planted.artifact), told(planted)["chosen"]
    assert artifact.profile.check.blend == chosen["blend"]
    assert artifact.profile.check.n_overlays == chosen["overlays"] == len(artifact.overlays)
    assert artifact.profile.fused is not None
    assert list(artifact.profile.fused.statistics) == told(planted)["served"]
    assert (planted.artifact / "model.onnx").read_bytes() == planted.findings.options.model.read_bytes()


def test_the_chosen_setting_finds_as_much_as_any_that_leaves_nothing_out(planted: CalibrationReport) -> None:
    canaries = told(planted)
    usual = [one for one in canaries["tried"] if set(one["statistics"]) >= {*DEFAULT_STATISTICS}]
    assert {one["blend"] for one in usual} == {"add", "add_clip", "half_clip", "convex"}
    assert canaries["chosen"]["mean_tpr"] >= max(one["mean_tpr"] for one in usual) - 0.01
    share = canaries["chosen"]["tpr"]["badnets"]
    assert share["low"] <= share["value"] <= share["high"]


def test_second_opinions_are_tried_on_the_canaries_that_count(planted: CalibrationReport) -> None:
    (record,) = planted.findings.profile.opinions
    (auroc,) = record.canary_aurocs
    assert ("blind to the planted canaries" in record.why_off) == (auroc < LEAST_AUROC)
    assert planted.findings.canaries is not None
    assert "planted" not in planted.findings.canaries.to_record()


def test_what_was_chosen_is_named_as_it_serves_and_what_was_measured_without_layers_as_that(
    planted: CalibrationReport,
) -> None:
    fused, found = planted.findings.profile.fused, told(planted)
    assert fused is not None
    assert fused.statistics[-1] == "layers"
    assert found["served"] == list(fused.statistics)
    assert found["chosen"]["statistics"] == list(fused.statistics[:-1])
    text = "\n".join(planted.lines())
    check = planted.findings.profile.check
    served, measured = (", ".join(names) for names in (fused.statistics, fused.statistics[:-1]))
    assert f"chosen: blend {check.blend}, N = {check.n_overlays}, fused ({served})\n" in text
    said = f"measured on canaries without layers, as fused ({measured}); the expected detection is of that\n"
    assert said in text


def test_images_that_calibrate_took_no_part_in_the_choice(planted: CalibrationReport) -> None:
    profile, split = planted.findings.profile, planted.findings.split
    assert profile.fused is not None
    assert profile.fused.boundary.n_scores == COUNT - OVERLAYS - FITTED
    assert profile.fused.n_fitted == FITTED
    assert not set(split.calibration) & {*split.fit, *split.overlays}


def test_the_printed_report_says_what_to_expect_and_that_real_attacks_may_differ(
    planted: CalibrationReport,
) -> None:
    text = "\n".join(planted.lines())
    assert "expected detection of badnets: " in text
    assert "a real one may be found more or less often" in text


def test_a_canary_that_does_not_take_is_told_and_the_default_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "STEPS", 0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    report = calibrate(options_for(tmp_path, canaries=("all_to_all",)))
    (canary,) = told(report)["canaries"]
    assert "held-out images, less than 80%" in canary["why_not"]
    assert told(report)["why_not"] == "no canary could be planted"
    assert report.findings.profile.check.blend == "add"
    assert report.findings.profile.check.n_overlays == OVERLAYS
    assert capsys.readouterr().err == ""  # as it was to be quiet


def test_planting_says_how_far_it_is_through_all_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "STEPS", 0)  # of an epoch each: they fail together, and are tried again alone
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    calibrate(options_for(tmp_path, canaries=("badnets", "blend"), quiet=False))

    line = r"^planting canaries: (\d+)%, \d+ s gone, about (\d+) s left$"
    said = re.findall(line, capsys.readouterr().err, re.MULTILINE)
    shares = [int(share) for share, _ in said]
    batches = len(shares) // 3
    together, alone = shares[:batches], shares[batches:]
    assert together[-1] == 100
    assert alone == sorted(alone)
    assert alone[0] == round(100 * (batches + 1) / len(shares))
    assert said[-1] == ("100", "0")


def test_a_model_that_cannot_be_trained_is_calibrated_all_the_same(tmp_path: Path) -> None:
    report = calibrate(options_for(tmp_path, with_an_unknown_operator()))
    assert "NonZero" in told(report)["why_not"]
    assert report.findings.profile.check.blend == "add"


def test_without_torch_calibration_goes_on_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "calibration.canaries.job")
    monkeypatch.delitem(sys.modules, "calibration.canaries.planting")
    monkeypatch.setitem(sys.modules, "torch", None)
    report = calibrate(options_for(tmp_path))
    assert told(report)["why_not"] == "torch is not installed; pip install 'inference-guard[repair]'"
    assert report.findings.profile.check.blend == "add"


def test_too_few_images_are_told_and_calibration_goes_on(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    images, labels = images_of(900, seed=3)
    np.savez(options.data, images=images, labels=labels)
    report = calibrate(options)
    assert told(report)["why_not"].startswith(f"canaries take {FITTED} images besides those that calibrate")
    assert report.findings.profile.check.blend == "add"


def test_a_scans_triggers_are_tried_on_the_model_itself_and_nothing_is_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(job, "plant")
    options = options_for(tmp_path)
    scan = write_scan(tmp_path / "scan", digest_of(options.model))
    report = calibrate(options_for(tmp_path, scan=scan, detector="strip"))
    (trigger,) = told(report)["canaries"]
    assert (trigger["kind"], trigger["why_not"]) == ("neural_cleanse-2-patch", "")
    assert trigger["accuracy"] == trigger["accuracy_before"]
    assert {tuple(one["statistics"]) for one in told(report)["tried"]} == {("strip",)}
    assert report.findings.profile.check.detector == "strip"
    assert told(report)["planted_seconds"] == 0


def test_a_scan_of_another_model_is_refused(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", "0" * 64)
    with pytest.raises(OptionError, match="is of another model"):
        calibrate(options_for(tmp_path, scan=scan))


def test_a_scan_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the folder that guard scan"):
        calibrate(options_for(tmp_path, scan=tmp_path))


def test_a_scan_that_flagged_nothing_leaves_the_default(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    scan = write_scan(tmp_path / "scan", digest_of(options.model), flagged=False)
    report = calibrate(options_for(tmp_path, scan=scan))
    assert told(report)["why_not"].endswith("flagged no label, so it holds no trigger")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canaries": ("badnets", "nets")}, r"--canaries nets: expected some of badnets, blend, sig"),
        ({"threshold": "normal"}, r"--threshold normal: expected conformal where canaries choose"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options_for(tmp_path, **changes)


def test_without_canaries_nothing_is_said_of_them(tmp_path: Path) -> None:
    report = calibrate(options_for(tmp_path, blend="convex", transform=Transform()))
    assert json.loads((report.artifact / "report.json").read_text())["canaries"] is None
    assert report.findings.profile.check.blend == "convex"


def digest_of(model: Path) -> str:
    return hashlib.sha256(model.read_bytes()).hexdigest()


def with_an_unknown_operator() -> onnx.ModelProto:
    """The network, with an operator in it that is not imported and whose result, 0, is added."""
    model = onnx.ModelProto()
    model.CopyFrom(backdoored())
    last = model.graph.node[-1]
    name = last.output[0]
    last.output[0] = "before"
    for node in (
        helper.make_node("Sub", ["before", "before"], ["nothing"]),
        helper.make_node("NonZero", ["nothing"], ["places"]),
        helper.make_node("ReduceSum", ["places"], ["count"], keepdims=0),
        helper.make_node("Cast", ["count"], ["zero"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["before", "zero"], [name]),
    ):
        model.graph.node.append(node)
    onnx.checker.check_model(model)
    return model
