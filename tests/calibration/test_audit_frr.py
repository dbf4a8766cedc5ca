"""``guard audit frr``: the check is the one that serves, the images are fresh, and the exit code says it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.audit.bounds import Rejections
from calibration.audit.fresh import read_fresh
from calibration.audit.job import audit_frr, by_class
from calibration.audit.options import FrrOptions
from calibration.audit.report import lines_of, to_record
from calibration.calibrate import calibrate
from calibration.errors import DataError, OptionError
from calibration.preprocessing import Transform
from guard.artifact import read_artifact
from guard.artifact.detector import boundaries_of
from guard.cli import main
from guard.detection.base import Decision
from guard.detection.threshold import Tier
from guard.runtime.check_task import Row
from guard.runtime.loader import RuntimeOptions, load_model
from tests.calibration.calibration_subjects import options_for, pixels
from tests.calibration.capability_models import clean_images, residual_net
from tests.tiny_models import linear_classifier

IMAGES = 900
RATES = {"frr": 0.05, "block_frr": 0.02}
KINDS = {
    "fused-two": {"detector": "fused", **RATES},
    "fused-one": {"detector": "fused", "frr": 0.05},
    "strip-two": {"detector": "strip", **RATES},
    "strip-one": {"detector": "strip", "frr": 0.05},
}


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for picture in ("entropy_picture", "score_picture"):
            patch.setattr(f"calibration.calibrate.{picture}", lambda *_: b"a picture")
        yield


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact of each kind, each beside the ``data.npz`` that it was calibrated with."""
    return {kind: made(tmp_path_factory.mktemp(kind), **changes) for kind, changes in KINDS.items()}


def made(
    folder: Path, images: np.ndarray | None = None, model: onnx.ModelProto | None = None, **changes: Any
) -> Path:
    options = options_for(folder, model or linear_classifier(gain=0.5), **changes)
    np.savez(options.data, images=pixels(IMAGES) if images is None else images)
    return calibrate(options).artifact


def asked(artifact: Path, data: Path, **changes: Any) -> FrrOptions:
    return FrrOptions(artifact, data, **{"threads": 1, "device": "cpu", "quiet": True, **changes})


def stored(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "fresh.npz", **arrays)
    return folder / "fresh.npz"


def certain(count: int = 40) -> np.ndarray:
    """Images of which the model is so certain that no overlay changes its mind."""
    return np.where(pixels(count, seed=4) > 128, 255, 0).astype(np.uint8)


async def served(artifact: Path, rows: np.ndarray) -> tuple[list[Row], list[float]]:
    """Return the rows' states after the check that serves, and their scores."""
    model = load_model("tiny", artifact, RuntimeOptions(device="cpu", threads=1, max_batch_pairs=13))
    try:
        parts = np.array_split(rows, 9)
        tasks = [model.scheduler.submit(part, np.ones(len(part), np.bool_)).rows for part in parts]
        states = [row for rows in await asyncio.wait_for(asyncio.gather(*tasks), 60) for row in rows]
        return states, [model.detector.score(row.evidence) for row in states]
    finally:
        model.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_every_image_is_decided_as_when_it_is_served(
    artifacts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    images = np.concatenate([pixels(150, seed=21), certain()])
    audit = audit_frr(asked(artifacts[kind], stored(tmp_path, images=images)))
    rows, scores = await served(artifacts[kind], audit.fresh.prepare(images))

    assert list(audit.checked.decisions) == [row.decision for row in rows]
    assert audit.checked.passes.tolist() == [row.evidence.passes for row in rows]
    np.testing.assert_allclose(audit.checked.scores, scores, atol=1e-5)
    wanted = {Decision.CLEAN, Decision.SUSPICIOUS}
    assert wanted <= set(audit.checked.decisions), "else the comparison proves little"
    assert audit.mean_passes == pytest.approx(np.mean([row.evidence.passes for row in rows]))


async def test_a_detector_that_looks_inside_decides_as_when_it_is_served(tmp_path: Path) -> None:
    def pictures(images: np.ndarray) -> np.ndarray:
        return np.asarray((images.transpose(0, 2, 3, 1) * 255).round(), np.uint8)

    artifact = made(
        tmp_path, pictures(clean_images(800)), residual_net(3), detector="fused", frr=0.05, layers="auto"
    )
    noise = np.random.default_rng(0).uniform(0, 1, (20, 3, 8, 8))
    images = np.concatenate([pictures(clean_images(40, seed=5)), pictures(noise)])
    audit = audit_frr(asked(artifact, stored(tmp_path, images=images)))
    rows, scores = await served(artifact, audit.fresh.prepare(images))

    fused = audit.artifact.profile.fused
    assert fused is not None
    assert "layers" in fused.statistics
    assert list(audit.checked.decisions) == [row.decision for row in rows]
    assert audit.checked.passes.tolist() == [row.evidence.passes for row in rows]
    np.testing.assert_allclose(audit.checked.scores, scores, atol=1e-3)
    assert audit.checked.passes[40:].min() < audit.artifact.profile.check.n_overlays


@pytest.mark.parametrize("kind", KINDS)
def test_each_tier_counts_what_is_beyond_its_boundary(
    artifacts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    images = np.concatenate([pixels(300, seed=21), certain(20)])
    audit = audit_frr(asked(artifacts[kind], stored(tmp_path, images=images)))
    decisions = list(audit.checked.decisions)
    counts = {
        Tier.FLAG: decisions.count(Decision.DOUBTFUL) + decisions.count(Decision.SUSPICIOUS),
        Tier.BLOCK: decisions.count(Decision.SUSPICIOUS),
    }
    profile = read_artifact(artifacts[kind]).profile
    assert [(tier.tier, tier.boundary) for tier in audit.tiers] == list(boundaries_of(profile))
    assert [tier.tier for tier in audit.tiers] == list(Tier) if kind.endswith("two") else [Tier.BLOCK]
    for tier in audit.tiers:
        assert (tier.found.rejected, tier.found.of) == (counts[tier.tier], 320)
        assert tier.rate == tier.boundary.certified_frr


def test_fresh_images_like_those_of_the_calibration_do_not_refute_it(
    artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pixels(IMAGES + 700)[IMAGES:]  # drawn as those of the calibration, and others
    data, report = stored(tmp_path, images=images), tmp_path / "frr.json"
    flags = ["--threads", "1", "--quiet", "--json", str(report)]

    assert main(["audit", "frr", str(artifacts["fused-two"]), "--data", str(data), *flags]) == 0

    told, found = capsys.readouterr().out, json.loads(report.read_text())
    assert not found["refuted"]
    assert [tier["tier"] for tier in found["tiers"]] == ["flag", "block"]
    for tier in found["tiers"]:
        of = Rejections(tier["rejected"], 700, 0.05)
        assert (tier["lower"], tier["upper"]) == pytest.approx((of.lower, of.upper), rel=1e-9)
        assert f"{of.rejected} of 700" in told
        assert tier["standing"] == of.standing(tier["boundary"]["certified_frr"])
    assert "whether others of it are here cannot be told" in told
    assert f"report: {report}" in told


def test_a_rate_that_is_provably_exceeded_is_exit_code_3(
    artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stored(tmp_path, images=np.concatenate([pixels(20, seed=21), certain()]))
    command = ["audit", "frr", str(artifacts["strip-one"]), "--data", str(data), "--threads", "1", "--quiet"]

    assert main(command) == 3

    told = capsys.readouterr().out
    assert "refuted" in told
    assert "none would do" in told


def test_images_of_the_calibration_prove_nothing(artifacts: dict[str, Path], tmp_path: Path) -> None:
    artifact = artifacts["fused-one"]
    calibrated = artifact.parents[2] / "data.npz"
    with pytest.raises(DataError, match="the very images that the artifact was calibrated with"):
        audit_frr(asked(artifact, calibrated))
    shuffled = np.random.default_rng(0).permutation(pixels(IMAGES))
    with pytest.raises(DataError, match=r"images .*, … \(12 in all\) are among the 12 images"):
        audit_frr(asked(artifact, stored(tmp_path, images=shuffled)))
    [overlay] = np.rint(read_artifact(artifact).overlays[:1].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    one = np.concatenate([pixels(30, seed=21), overlay[None]])
    with pytest.raises(DataError, match=r"image 30 \(1 in all\) is among the 12 images .* leave it out"):
        audit_frr(asked(artifact, stored(tmp_path, images=one)))


def test_what_cannot_be_checked_is_told_and_not_counted(tmp_path: Path) -> None:
    unit = pixels(400).astype(np.float32) / 255
    artifact = made(tmp_path, unit, detector="strip", frr=0.05)
    fresh = pixels(60, seed=21).astype(np.float32) / 255
    fresh[:7, 0, 0, 0] = 1.5
    audit = audit_frr(asked(artifact, stored(tmp_path, images=fresh, labels=np.arange(60) % 10)))
    assert audit.tiers[0].found.of == 53
    assert to_record(audit)["data"]["outside_the_calibrated_range"] == 7
    assert audit.accuracy == pytest.approx((audit.checked.predicted == np.arange(7, 60) % 10).mean())
    with pytest.raises(DataError, match="none of them can be checked"):
        audit_frr(asked(artifact, stored(tmp_path, images=fresh + 5)))
    with pytest.raises(DataError, match="they are of another scale"):
        audit_frr(asked(artifact, stored(tmp_path, images=fresh[7:] / 255)))


def test_accuracy_is_told_beside_that_of_the_calibration(tmp_path: Path) -> None:
    labels = np.arange(400) % 10
    options = options_for(tmp_path, linear_classifier(gain=0.5), detector="strip", frr=0.05)
    np.savez(options.data, images=pixels(400), labels=labels)
    artifact = calibrate(options).artifact
    audit = audit_frr(asked(artifact, stored(tmp_path, images=pixels(60, seed=21), labels=labels[:60])))
    before = read_artifact(artifact).profile.calibration.accuracy
    assert before is not None
    assert f"{audit.accuracy:.2%} (at calibration {before:.2%})" in "\n".join(lines_of(audit))
    assert to_record(audit)["accuracy_at_calibration"] == before


@pytest.mark.parametrize("resize", [None, (8,)])
def test_images_of_another_size_are_not_sent_to_a_flag_that_is_not_there(
    tmp_path: Path, resize: tuple[int] | None
) -> None:
    artifact = made(tmp_path, pixels(400), detector="strip", frr=0.05, transform=Transform(resize=resize))
    images = np.zeros((40, 10, 14, 3), np.uint8)
    with pytest.raises(DataError, match="give them in the size that those of the calibration had"):
        audit_frr(asked(artifact, stored(tmp_path, images=images)))


def test_images_are_prepared_as_the_profile_says(tmp_path: Path) -> None:
    wish = Transform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), colour="BGR", resize=(8, 8))
    artifact = made(tmp_path, pixels(400), detector="strip", frr=0.05, transform=wish)
    colours = np.random.default_rng(1).integers(0, 256, (12, 1, 1, 3), np.uint8)
    images = np.tile(colours, (1, 16, 24, 1))  # of one colour each, which no resizing changes
    fresh = read_fresh(read_artifact(artifact), asked(artifact, stored(tmp_path, images=images)))
    expected = (colours[..., ::-1] / 255 - np.array(wish.mean)) / np.array(wish.std)
    prepared = fresh.prepare(fresh.images.images)
    assert prepared.shape == (12, 3, 8, 8)
    np.testing.assert_allclose(prepared, np.tile(expected.transpose(0, 3, 1, 2), (1, 1, 8, 8)), atol=1e-6)
    with pytest.raises(DataError, match="was calibrated with uint8, 0 to 255"):
        audit_frr(asked(artifact, stored(tmp_path, images=images / 255)))


def test_classes_are_told_where_there_are_images_enough() -> None:
    predicted = np.repeat([0, 1, 2], [400, 400, 30])
    rejected = np.zeros(830, bool)
    rejected[:20] = rejected[400] = True
    first, second = by_class(predicted, rejected, 0.01, 0.05)
    assert (first.label, first.found.rejected, first.found.of, first.stands_out) == (0, 20, 400, True)
    assert (second.label, second.found.rejected, second.stands_out) == (1, 1, False)
    assert by_class(predicted[:298], rejected[:298], 0.01, 0.05) == ()
    # 8 of 400 alone are more than chance (lower bound 1.0 %), but not as the most rejected of two.
    rejected[:20] = np.arange(20) < 8
    assert Rejections(8, 400, 0.05).standing(0.0099) == "refuted"
    assert not by_class(predicted, rejected, 0.0099, 0.05)[0].stands_out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": 1.0}, "--confidence 1.0: expected a number between 0 and 1"),
        ({"threads": 0}, "--threads 0: expected at least 1"),
        ({"json": Path("nowhere/at/all.json")}, r"--json nowhere/at/all.json: nowhere/at is no directory"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        asked(Path("a"), Path("b"), **changes)
