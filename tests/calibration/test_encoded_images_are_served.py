"""The files that a model was calibrated with, sent to it as they are, score as they did at calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.calibrate import calibrate
from calibration.errors import DataError, OptionError
from calibration.options import CalibrateOptions
from calibration.preprocessing import Transform
from guard.artifact import Preprocessing, read_artifact
from guard.rpc.pb import open_inference_pb2 as pb
from tests.calibration.calibration_subjects import N_OVERLAYS, pixels, write_subject
from tests.guard.image_files import encoded, wire
from tests.serving import serving
from tests.tiny_models import linear_classifier

SENT = 8
WAYS = {
    "as they are": (Transform(), (8, 8), "NCHW"),
    "resized, normalised": (
        Transform(resize=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.5, 0.4, 0.6)),
        (13, 11),
        "NCHW",
    ),
    "shorter side, middle, BGR, channels last": (
        Transform(resize=(9,), crop=(8, 8), colour="BGR", mean=(0.5, 0.4, 0.3)),
        (12, 17),
        "NHWC",
    ),
}


@pytest.fixture(autouse=True)
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")


def options_of(folder: Path, way: str, form: str, **changes: object) -> CalibrateOptions:
    """Write a folder of files, in four class folders, and return the options of its calibration."""
    transform, size, layout = WAYS[way]
    subject = write_subject(folder, linear_classifier(gain=0.5, layout=layout))
    for number, image in enumerate(pixels(80)):
        picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST)
        file = folder / "files" / f"class {number % 4}" / f"{number:03}.{form.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture, form))
    return CalibrateOptions(
        **{
            **subject,
            "data": folder / "files",
            "frr": 0.2,
            "confidence": 0.5,
            "transform": transform,
            **changes,
        }
    )


def files_of(folder: Path) -> list[bytes]:
    """Return the files in the order in which a calibration reads them."""
    return [file.read_bytes() for file in sorted((folder / "files").rglob("*.*"))]


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("way", WAYS)
async def test_files_score_as_they_did_at_calibration(tmp_path: Path, way: str, form: str) -> None:
    report = calibrate(options_of(tmp_path, way, form))
    artifact = read_artifact(report.artifact)
    assert artifact.profile.preprocessing.eight_bit is True
    chosen = report.findings.split.calibration[:SENT]
    files = files_of(tmp_path)

    async with serving(tmp_path / "repository", policy="flag") as client:
        answer = await client.infer(request_of([files[row] for row in chosen]))

    logits, scores, passes = (
        np.frombuffer(raw, dtype)
        for raw, dtype in zip(answer.raw_output_contents, ("<f4", "<f4", "<i4"), strict=True)
    )
    np.testing.assert_allclose(logits.reshape(SENT, -1), report.findings.outputs[chosen], rtol=0, atol=1e-5)
    whole = passes == N_OVERLAYS
    known = np.array(artifact.profile.calibration.clean_entropies_bits)
    assert whole.any()
    for score in scores[whole]:
        assert np.abs(known + score).min() < 1e-6


def request_of(files: list[bytes]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[wire(files)])
    request.inputs.add(name="images", datatype="BYTES", shape=[len(files), 1])
    for name in ("logits", "guard_score", "guard_passes"):
        request.outputs.add(name=name)
    return request


def test_the_profile_keeps_every_step(tmp_path: Path) -> None:
    way = "shorter side, middle, BGR, channels last"

    record = read_artifact(calibrate(options_of(tmp_path, way, "PNG")).artifact).profile.preprocessing

    assert record == Preprocessing(
        scale=1 / 255,
        mean=(0.5, 0.4, 0.3),
        std=(1.0,),
        resize=(9,),
        crop=(8, 8),
        colour="BGR",
        orientation="ignore",
        eight_bit=True,
    )


def test_images_stored_as_floats_declare_no_encoded_ones(tmp_path: Path) -> None:
    subject = write_subject(tmp_path, images=pixels(80).astype(np.float32) / 255)

    profile = read_artifact(calibrate(CalibrateOptions(**subject, frr=0.2, confidence=0.5)).artifact).profile

    assert profile.preprocessing.eight_bit is False


def test_files_that_do_not_come_to_the_models_size_are_named(tmp_path: Path) -> None:
    transform = Transform(resize=(9,))
    options = options_of(
        tmp_path, "shorter side, middle, BGR, channels last", "PNG", transform=transform, layout="NHWC"
    )

    with pytest.raises(DataError, match=r"000\.png: images are 12 x 17 .* to 9 x 12, the model takes 8 x 8"):
        calibrate(options)


def test_files_too_small_to_crop_are_named(tmp_path: Path) -> None:
    options = options_of(tmp_path, "as they are", "PNG", transform=Transform(resize=(7,), crop=(8, 8)))

    with pytest.raises(DataError, match=r"000\.png: images are 8 x 8 .* and too small to crop"):
        calibrate(options)


NAMES = "\n".join(f"name {index}" for index in range(10))


def test_class_names_of_a_file_are_the_labels(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text(NAMES + "\n", "utf-8-sig")  # as editors on Windows save it

    profile = read_artifact(
        calibrate(options_of(tmp_path, "as they are", "PNG", class_names=names)).artifact
    ).profile

    assert profile.output.labels == tuple(NAMES.split("\n"))


def test_four_class_folders_do_not_name_ten_classes(tmp_path: Path) -> None:
    profile = read_artifact(calibrate(options_of(tmp_path, "as they are", "PNG")).artifact).profile

    assert profile.output.labels is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"one\ntwo\n", "has 2 lines, expected 10, one for each class"),
        (NAMES.replace("name 3", "").encode(), "line 4: expected 1 to 200 printable characters"),
        (
            NAMES.replace("name 9", "a\tb").encode(),
            "line 10: expected 1 to 200 printable characters, got 'a\\tb'",
        ),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path: Path, text: bytes, words: str) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(text)

    with pytest.raises(OptionError) as refused:
        calibrate(options_of(tmp_path, "as they are", "PNG", class_names=names))

    assert f"--class-names {names}" in str(refused.value)
    assert words in str(refused.value)
