"""`guard calibrate` from files to an artifact, compared with plain numpy."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.calibrate import calibrate
from calibration.errors import DataError, NoBoundaryError, TooFewImagesError
from calibration.options import CalibrateOptions
from calibration.preprocessing import Transform
from calibration.threshold import SCORE_MARGIN
from guard.artifact import Artifact, read_artifact
from guard.detection.plan import default_rounds
from guard.detection.superimpose import BLEND_RULES
from guard.errors import UnfitModelError
from tests import tiny_models
from tests.calibration.calibration_subjects import (
    N_IMAGES,
    N_OVERLAYS,
    options_for,
    pixels,
    reference_means,
    write_subject,
)
from tests.tiny_models import linear_classifier

MODELS = {
    "channels first": (linear_classifier(gain=0.5), 1e-5),
    "channels last": (linear_classifier(gain=0.5, layout="NHWC"), 1e-5),
    "probabilities": (linear_classifier(gain=0.5, softmax=True), 1e-5),
    "uint8": (linear_classifier(gain=0.5, datatype="UINT8", layout="NHWC"), 1e-5),
    "fixed batch": (linear_classifier(gain=0.5, batch=4), 1e-5),
    "float16": (linear_classifier(gain=0.5, datatype="FP16"), 1e-2),
}


@pytest.fixture(autouse=True)
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; the command's tests and the picture's own draw it."""
    monkeypatch.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")


def made(options: CalibrateOptions) -> Artifact:
    return read_artifact(calibrate(options).artifact)


@pytest.mark.parametrize(("model", "tolerance"), MODELS.values(), ids=MODELS.keys())
def test_scores_of_every_kind_of_model_equal_plain_numpy(
    tmp_path: Path, model: onnx.ModelProto, tolerance: float
) -> None:
    artifact = made(options_for(tmp_path, model))
    scores = np.array(artifact.profile.calibration.clean_entropies_bits)
    np.testing.assert_allclose(scores, reference_means(artifact, pixels()), atol=tolerance)
    assert len(scores) == N_IMAGES - N_OVERLAYS


@pytest.mark.parametrize("blend", BLEND_RULES)
def test_scores_under_every_blend_rule_equal_plain_numpy(tmp_path: Path, blend: str) -> None:
    artifact = made(options_for(tmp_path, blend=blend))
    assert artifact.profile.check.blend == blend
    scores = np.array(artifact.profile.calibration.clean_entropies_bits)
    np.testing.assert_allclose(scores, reference_means(artifact, pixels()), atol=1e-5)


def test_the_profile_says_what_was_calibrated(tmp_path: Path) -> None:
    options = options_for(tmp_path, linear_classifier(gain=0.5, batch=4, softmax=True))
    artifact = made(options)
    profile = artifact.profile
    assert (artifact.version, profile.model_name, profile.fixed_batch) == ("1", "tiny", 4)
    assert (profile.input.name, profile.input.datatype, profile.input.layout) == ("images", "FP32", "NCHW")
    assert (profile.input.shape, profile.input.low, profile.input.high) == ((3, 8, 8), (0.0,), (1.0,))
    assert profile.output.model_dump() == {
        "name": "probabilities",
        "datatype": "FP32",
        "classes": 10,
        "kind": "probabilities",
        "labels": None,
    }
    assert profile.preprocessing.scale == 1 / 255
    assert profile.check.rounds == default_rounds(N_OVERLAYS)
    assert profile.calibration.seed == 11
    assert profile.calibration.n_images == N_IMAGES
    assert profile.calibration.accuracy is None
    assert profile.calibration.created.endswith("+00:00")
    assert set(profile.calibration.versions) >= {"inference-guard", "numpy", "onnxruntime", "scipy"}


def test_the_boundary_keeps_its_promise_on_the_calibration_scores(tmp_path: Path) -> None:
    profile = made(options_for(tmp_path, frr=0.02, confidence=0.9)).profile
    boundary, scores = profile.boundary, np.array(profile.calibration.clean_entropies_bits)
    # Provenance: the largest k with BinomCDF(k − 1; 352, .02) ≤ .1 is 4.
    assert (boundary.method, boundary.rank, boundary.n_scores) == ("conformal", 4, 352)
    assert boundary.boundary_bits == scores[3] * (1 - SCORE_MARGIN)
    assert int((scores < boundary.boundary_bits).sum()) <= 3
    assert boundary.certified_frr is not None
    assert boundary.expected_frr < boundary.certified_frr <= 0.02
    assert boundary.confidence == pytest.approx(0.9)


def test_the_model_in_the_artifact_is_the_file_itself(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    artifact = made(options)
    assert (artifact.directory / "model.onnx").read_bytes() == options.model.read_bytes()
    assert artifact.profile.model_sha256 == hashlib.sha256(options.model.read_bytes()).hexdigest()


def test_weights_kept_beside_the_model_are_moved_into_the_artifact(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    plain = made(options)
    model = onnx.load(options.model)
    onnx.save(model, options.model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    moved = made(options)
    assert moved.version == "2"
    assert not (moved.directory / "weights.bin").exists()
    assert moved.profile.calibration.clean_entropies_bits == plain.profile.calibration.clean_entropies_bits


def test_copies_of_overlays_are_scored_like_any_other_image_and_counted(tmp_path: Path) -> None:
    images = np.concatenate([pixels(), pixels()[:200]])
    report = calibrate(CalibrateOptions(**write_subject(tmp_path, images=images)))
    profile, split = report.findings.profile, report.findings.split
    assert len(profile.calibration.clean_entropies_bits) == profile.boundary.n_scores == 560 - N_OVERLAYS
    written = json.loads((report.artifact / "report.json").read_text())["data"]
    assert written["copies_of_overlays"] == split.n_copies > 0
    assert written["repeated_calibration_images"] == split.n_repeats > 0
    assert any("exact copies of others" in warning for warning in report.findings.warnings())


def test_labels_and_predictions_take_no_part_in_the_draw_of_overlays(tmp_path: Path) -> None:
    labels = np.arange(N_IMAGES) // 36
    plain, labelled, other_model = (
        calibrate(options).findings.split.overlays.tolist()
        for options in (
            options_for(tmp_path),
            CalibrateOptions(**write_subject(tmp_path, images=pixels(), labels=labels)),
            options_for(tmp_path, linear_classifier(gain=0.5, seed=3)),
        )
    )
    assert plain == labelled == other_model


def test_overlays_are_ordered_so_that_clean_inputs_pass_early(tmp_path: Path) -> None:
    report = calibrate(options_for(tmp_path))
    means = report.findings.overlay_entropies.tolist()
    assert means == sorted(means, reverse=True)
    profile = report.findings.profile
    assert 4 <= profile.calibration.mean_passes_clean < N_OVERLAYS


def test_the_same_seed_makes_the_same_artifact(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    one, two = made(options), made(options)
    assert (one.version, two.version) == ("1", "2")
    np.testing.assert_array_equal(one.overlays, two.overlays)
    masked = {"calibration": {"created", "versions"}}
    assert one.profile.model_dump(exclude=masked) == two.profile.model_dump(exclude=masked)


def test_a_seed_that_was_drawn_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = 1234567890123456
    monkeypatch.setattr("calibration.calibrate.secrets.randbits", lambda _: drawn)
    report = calibrate(options_for(tmp_path, seed=None))
    assert report.findings.profile.calibration.seed is None
    assert all(str(drawn).encode() not in path.read_bytes() for path in report.artifact.iterdir())
    text = "\n".join(report.lines())
    assert str(drawn) not in text
    assert ", seed" not in text


def test_without_a_seed_each_calibration_draws_other_overlays(tmp_path: Path) -> None:
    options = options_for(tmp_path, seed=None)
    assert made(options).overlays.tobytes() != made(options).overlays.tobytes()


def test_a_seed_that_was_given_is_recorded_with_a_warning(tmp_path: Path) -> None:
    report = calibrate(options_for(tmp_path, seed=7))
    assert report.findings.profile.calibration.seed == 7
    expected = "overlays can be rebuilt from the seed and the data; leave --seed out in production"
    assert expected in list(report.findings.warnings())


def test_accuracy_is_that_of_the_calibration_images(tmp_path: Path) -> None:
    subject = write_subject(tmp_path)
    predicted = calibrate(CalibrateOptions(**subject)).findings.outputs.argmax(axis=1)
    wrong = np.where(np.arange(N_IMAGES) % 4 == 0, (predicted + 1) % 10, predicted)
    np.savez(subject["data"], images=pixels(), labels=wrong)
    report = calibrate(CalibrateOptions(**subject))
    rows = report.findings.split.calibration
    assert report.findings.profile.calibration.accuracy == pytest.approx(
        (wrong[rows] == predicted[rows]).mean()
    )
    assert report.findings.profile.calibration.accuracy == pytest.approx(0.75, abs=0.02)


def test_an_image_folder_gives_what_the_same_pixels_as_an_array_give(tmp_path: Path) -> None:
    subject = write_subject(tmp_path)
    for row, image in enumerate(pixels()):
        path = tmp_path / "folder" / f"{row:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    by_array = made(CalibrateOptions(**subject)).profile
    by_folder = made(CalibrateOptions(**subject | {"data": tmp_path / "folder"})).profile
    assert by_folder.boundary == by_array.boundary
    assert by_folder.calibration.clean_entropies_bits == by_array.calibration.clean_entropies_bits


def test_larger_images_are_resized_when_asked_and_the_profile_says_so(tmp_path: Path) -> None:
    large = pixels().repeat(2, axis=1).repeat(2, axis=2)
    subject = write_subject(tmp_path, images=large)
    with pytest.raises(
        DataError, match=re.escape("images are 16 x 16 (height x width), the model takes 8 x 8")
    ):
        calibrate(CalibrateOptions(**subject))
    profile = made(CalibrateOptions(**subject, transform=Transform(resize=(8, 8)))).profile
    assert profile.preprocessing.resize == (8, 8)


def test_a_model_of_free_size_takes_the_size_asked_for(tmp_path: Path) -> None:
    model = tiny_models.conv_classifier(size=(None, None))
    with pytest.raises(UnfitModelError, match="give height and width with --resize H W"):
        calibrate(options_for(tmp_path, model))
    profile = made(options_for(tmp_path, model, transform=Transform(resize=(8, 8)))).profile
    assert profile.input.shape == (3, 8, 8)


def test_a_shape_that_reads_both_ways_needs_a_layout(tmp_path: Path) -> None:
    model, images = tiny_models.ambiguous_layout(), pixels()[:, :, :3]
    subject = write_subject(tmp_path, model, images=images)
    with pytest.raises(UnfitModelError, match="say which with --layout NCHW or --layout NHWC"):
        calibrate(CalibrateOptions(**subject))
    assert made(CalibrateOptions(**subject, layout="NCHW")).profile.input.layout == "NCHW"


def test_a_model_that_does_not_tell_its_classes_is_calibrated_too(tmp_path: Path) -> None:
    model = tiny_models.untold_classes()
    assert made(options_for(tmp_path, model)).profile.output.classes == 10


def test_the_normal_threshold_is_written_without_a_guarantee(tmp_path: Path) -> None:
    images = pixels(100)  # too few to certify anything, enough for the paper's percentile
    report = calibrate(
        CalibrateOptions(**write_subject(tmp_path, images=images), threshold="normal", frr=0.05)
    )
    boundary = report.findings.profile.boundary
    assert (boundary.method, boundary.certified_frr, boundary.n_scores) == ("normal", None, 92)
    assert any("guarantees no false-rejection rate" in warning for warning in report.findings.warnings())


def test_too_few_images_are_refused_before_anything_is_scored(tmp_path: Path) -> None:
    subject = write_subject(tmp_path, tiny_models.not_a_number_classifier(), images=pixels(306))
    expected = (
        "data.npz holds 306 images, expected at least 307: 8 overlays, 299 to certify a false-rejection rate "
        "of 1.000% with 95.0% confidence; add images, raise --frr, or lower --confidence or --overlays"
    )
    with pytest.raises(TooFewImagesError, match=re.escape(expected)) as caught:
        calibrate(CalibrateOptions(**subject))
    assert (caught.value.needed, caught.value.got) == (307, 306)
    assert not subject["out"].exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_models.two_inputs(), "has 2 inputs"),
        (tiny_models.two_outputs(), "has 2 outputs"),
        (tiny_models.image_to_image(), "expected one row of at least 2 class scores for each image"),
        (tiny_models.vector_input(), "expected a batch of images: 4 axes"),
        (
            tiny_models.not_a_number_classifier(),
            "answers image 0 with NaN or infinite scores, and so 360 of 360",
        ),
        (tiny_models.batch_coupled_classifier(), "answers an image differently in another batch"),
    ],
    ids=["two inputs", "two outputs", "image out", "vector in", "not a number", "coupled rows"],
)
def test_models_that_cannot_be_guarded_are_refused(
    tmp_path: Path, model: onnx.ModelProto, message: str
) -> None:
    options = options_for(tmp_path, model)
    with pytest.raises(UnfitModelError, match=message):
        calibrate(options)
    assert not options.out.exists()


def test_a_model_that_is_certain_of_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoBoundaryError, match="the boundary would be 0 bits, which rejects nothing"):
        calibrate(options_for(tmp_path, linear_classifier(gain=1e5)))


def test_labels_of_classes_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    subject = write_subject(tmp_path, images=pixels(), labels=np.arange(N_IMAGES))
    with pytest.raises(
        DataError, match=re.escape("image 10 has label 10, the model has 10 classes (0 to 9)")
    ):
        calibrate(CalibrateOptions(**subject))


def test_wrong_preprocessing_is_pointed_out(tmp_path: Path) -> None:
    options = options_for(tmp_path, transform=Transform(scale=1e-6))
    warnings = list(calibrate(options).findings.warnings())
    assert any("images in class" in warning and "--scale" in warning for warning in warnings)


def test_the_report_holds_what_was_printed(tmp_path: Path) -> None:
    subject = write_subject(tmp_path, images=pixels(), labels=np.arange(N_IMAGES) % 10)
    report = calibrate(CalibrateOptions(**subject))
    written = json.loads((report.artifact / "report.json").read_text())
    profile = report.findings.profile
    assert written["boundary"] == profile.boundary.model_dump(mode="json")
    assert written["check"] == {
        "detector": "strip",
        "blend": "add",
        "rounds": [4, 4],
        "precision": "exact",
        "n_overlays": 8,
    }
    assert written["accuracy"] == profile.calibration.accuracy
    assert written["mean_passes_clean"] == profile.calibration.mean_passes_clean
    assert written["warnings"] == list(report.findings.warnings())
    assert len(written["entropy_bits"]["mean_per_overlay"]) == 8
    assert written["entropy_bits"]["quantiles"]["0.5"] == np.median(profile.calibration.clean_entropies_bits)
    assert list(written["seconds"]) == ["read", "predict", "split", "score", "boundary"]
    assert sum(written["data"]["predicted_per_class"]) == N_IMAGES
    assert set(written["machine"]) == {"system", "architecture", "cpu_count"}
    assert str(tmp_path) not in json.dumps(written)


def test_a_precision_other_than_the_usual_is_told(tmp_path: Path) -> None:
    report = calibrate(CalibrateOptions(**write_subject(tmp_path, images=pixels()), precision="fp16"))
    assert "N = 8, blend add, seed 11, computed in fp16\n" in "\n".join(report.lines())


def test_the_summary_says_what_a_person_wants_to_know(tmp_path: Path) -> None:
    subject = write_subject(tmp_path, images=pixels(), labels=np.arange(N_IMAGES) % 10)
    report = calibrate(CalibrateOptions(**subject))
    profile, text = report.findings.profile, "\n".join(report.lines())
    assert re.search(r"^calibrated tiny on 352 of 360 images in \d+\.\d s \(cpu\)$", text, re.MULTILINE)
    assert "N = 8, blend add, seed 11\n" in text
    assert f"threshold         {profile.boundary.boundary_bits:.4g} bits, conformal, rank 1 of 352" in text
    assert "false rejections  at most 0.847%, certified with 95.0% confidence (expected 0.283%)" in text
    assert f"mean passes       {profile.calibration.mean_passes_clean:.2f} of 8 per clean input" in text
    assert f"accuracy {profile.calibration.accuracy:.2%}" in text
    assert f"artifact          {report.artifact} (report.json and entropies.png inside)" in text
    assert text.endswith(f"next: guard serve --repository {tmp_path / 'repository'}")


def test_what_it_says_to_run_next_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "it's my $HOME"
    folder.mkdir()
    subject = write_subject(folder, images=pixels(), labels=np.arange(N_IMAGES) % 10)
    *_, last = calibrate(CalibrateOptions(**subject)).lines()
    assert shlex.split(last) == ["next:", "guard", "serve", "--repository", str(folder / "repository")]
