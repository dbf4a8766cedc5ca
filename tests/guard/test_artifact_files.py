"""Reading an artifact: what was written comes back, and any other file is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from guard.artifact import Manifest, Profile, read_artifact, write_artifact
from guard.errors import ArtifactError, HashMismatchError, MissingFileError, ProfileError, UnfitModelError
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.guard.artifact_edits import Json, edit_json, edit_profile, replace_file
from tests.tiny_models import linear_classifier

FILES = ["model.onnx", "overlays.npy", "profile.json"]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_what_was_written_comes_back(tmp_path: Path, datatype: str, layout: str) -> None:
    model = linear_classifier(datatype=datatype, layout=layout)
    profile = make_profile(model, blend="add_clip", boundary_bits=0.1 + 0.2)
    overlays = random_images(profile, 8)
    data = model.SerializeToString()
    directory = write_artifact(tmp_path / "tiny", model=data, overlays=overlays, profile=profile)

    artifact = read_artifact(directory)
    assert artifact.directory == directory
    assert artifact.version == "1"
    assert artifact.model.SerializeToString() == data
    assert artifact.overlays.dtype == overlays.dtype
    assert artifact.overlays.tobytes() == overlays.tobytes()
    assert artifact.profile == profile
    assert artifact.profile.boundary.boundary_bits == 0.30000000000000004  # every bit of the float64
    assert artifact.digest == hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()


def test_the_same_artifact_has_the_same_bytes_and_another_a_different_digest(tmp_path: Path) -> None:
    one, same, other = (
        read_artifact(write_tiny_artifact(tmp_path, boundary_bits=bits)) for bits in (0.5, 0.5, 0.6)
    )
    assert [artifact.version for artifact in (one, same, other)] == ["1", "2", "3"]
    assert one.digest == same.digest != other.digest


def test_the_manifest_lists_the_sha256_and_size_of_every_file(artifact: Path) -> None:
    manifest = Manifest.model_validate_json((artifact / "manifest.json").read_bytes())
    assert sorted(manifest.files) == FILES
    for name, record in manifest.files.items():
        data = (artifact / name).read_bytes()
        assert record.sha256 == hashlib.sha256(data).hexdigest()
        assert record.bytes == len(data)


def test_a_file_that_is_not_listed_is_left_alone(artifact: Path) -> None:
    (artifact / "notes.txt").write_text("by hand")
    assert read_artifact(artifact).profile.model_name == "tiny"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused(artifact: Path, name: str) -> None:
    data = bytearray((artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / name).write_bytes(data)
    expected = rf"{name}: expected SHA-256 \w{{16}}… \({len(data)} bytes\), got \w{{16}}… .*calibrate again"
    with pytest.raises(HashMismatchError, match=expected):
        read_artifact(artifact)


def test_a_changed_extra_file_is_refused_too(tmp_path: Path) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    directory = write_artifact(
        tmp_path / "tiny",
        model=model.SerializeToString(),
        overlays=random_images(profile, 8),
        profile=profile,
        extra_files={"report/report.json": b"{}"},
    )
    assert read_artifact(directory).profile == profile
    (directory / "report" / "report.json").write_bytes(b"[]")
    with pytest.raises(HashMismatchError, match=r"report/report\.json: expected SHA-256"):
        read_artifact(directory)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(MissingFileError, match=rf"{name} is missing; restore it or run `guard calibrate`"):
        read_artifact(artifact)


def test_the_directory_of_a_model_is_told_from_a_damaged_artifact(artifact: Path) -> None:
    for version in ("9", "10"):
        shutil.copytree(artifact, artifact.parent / "models" / version)
    expected = f"holds versions of a model: name one of them, such as {artifact.parent / 'models' / '10'}"
    with pytest.raises(MissingFileError, match=re.escape(expected)):
        read_artifact(artifact.parent / "models")


def test_a_repository_is_told_from_a_damaged_artifact(artifact: Path) -> None:
    inside = artifact.parent / "repository" / "cats" / "3"
    shutil.copytree(artifact, inside)
    expected = f"is a repository of models: name a version of one, such as {inside}"
    with pytest.raises(MissingFileError, match=re.escape(expected)):
        read_artifact(artifact.parent / "repository")


@pytest.mark.parametrize("name", FILES)
def test_a_directory_in_place_of_a_file_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    (artifact / name).mkdir()
    with pytest.raises(MissingFileError, match=rf"{name} is missing"):
        read_artifact(artifact)


def test_an_artifact_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"7 is not a directory; expected an artifact with manifest"):
        read_artifact(tmp_path / "7")


def test_a_listed_name_too_long_for_the_file_system_is_refused(artifact: Path) -> None:
    record = {"sha256": "0" * 64, "bytes": 0}
    edit_json(artifact / "manifest.json", lambda manifest: manifest["files"].update({"x" * 300: record}))
    with pytest.raises(ArtifactError, match=r"x cannot be read \(File name too long\); check its name"):
        read_artifact(artifact)


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_that_does_not_list_a_file_is_refused(artifact: Path, name: str) -> None:
    edit_json(artifact / "manifest.json", lambda manifest: manifest["files"].pop(name))
    with pytest.raises(MissingFileError, match=rf"manifest\.json does not list {name}; expected model"):
        read_artifact(artifact)


def test_a_profile_of_another_model_is_refused(artifact: Path) -> None:
    replace_file(artifact, "model.onnx", linear_classifier(seed=1).SerializeToString())
    expected = r"profile\.json was measured on another model: .*calibrate this model"
    with pytest.raises(ProfileError, match=expected):
        read_artifact(artifact)


@pytest.mark.parametrize("content", [b"no protobuf", b"\x08", b""])
def test_a_model_that_is_no_onnx_is_refused(artifact: Path, content: bytes) -> None:
    replace_file(artifact, "model.onnx", content)
    digest = hashlib.sha256(content).hexdigest()
    edit_profile(artifact, lambda profile: profile.update(model_sha256=digest))
    with pytest.raises(
        UnfitModelError, match=r"model\.onnx .*(is not an ONNX model|without nodes).*expected"
    ):
        read_artifact(artifact)


def delete(*path: str) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value: object, *path: str) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete("check", "blend"), r"check\.blend: Field required"),
        (delete("boundary"), r"boundary: Field required"),
        (put(1, "surprise"), r"surprise: Extra inputs are not permitted, got 1"),
        (put(1, "check", "surprise"), r"check\.surprise: Extra inputs are not permitted"),
        (put(2, "format"), r"format: Input should be 1, got 2"),
        (put("multiply", "check", "blend"), r"check\.blend: Input should be 'add'.*, got 'multiply'"),
        (put([], "check", "rounds"), r"check\.rounds: Tuple should have at least 1 item"),
        (put([4, 0], "check", "rounds"), r"check\.rounds\.1: Input should be greater than or equal to 1"),
        (
            put("FP64", "input", "datatype"),
            r"input\.datatype: Input should be 'FP32', 'FP16', 'BF16' or 'UINT8'",
        ),
        (put([3, 8], "input", "shape"), r"input\.shape\.2: Field required"),
        (put([0.0, 0.0], "input", "low"), r"input: .*must both hold 1 or 3 values, got 2 and 1"),
        (put([1.0], "input", "low"), r"input: .*low must be below high in every channel"),
        (put(1, "output", "classes"), r"output\.classes: Input should be greater than or equal to 2"),
        (put(float("nan"), "boundary", "boundary_bits"), r"boundary\.boundary_bits: .*finite number"),
        (put([float("inf")], "input", "high"), r"input\.high\.0: .*finite number"),
        (put(float("nan"), "boundary", "frr"), r"boundary\.frr: .*finite number"),
        (put([0.0], "preprocessing", "std"), r"preprocessing\.std\.0: Input should be greater than 0"),
        (put([], "calibration", "clean_entropies_bits"), r"clean_entropies_bits: .*at least 1 item"),
        (put([float("nan")], "calibration", "clean_entropies_bits"), r"bits\.0: .*finite number"),
        (put([2.0, 1.0], "calibration", "clean_entropies_bits"), r"clean_entropies_bits must be ascending"),
        (put([1.0, 2.0], "calibration", "clean_entropies_bits"), r"rank and n_scores must fit"),
        (put(5, "boundary", "rank"), r"rank and n_scores must fit"),
        (put("xyz", "model_sha256"), r"model_sha256: String should match pattern"),
        (put("often", "boundary", "frr"), r"boundary\.frr: Input should be a valid number.*got 'often'"),
    ],
)
def test_a_profile_with_a_wrong_field_is_refused_by_the_name_of_the_field(
    artifact: Path, change: Callable[[Json], None], message: str
) -> None:
    edit_profile(artifact, change)
    with pytest.raises(ProfileError, match=rf"profile\.json: .*{message}.*guard calibrate"):
        read_artifact(artifact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete("files"), r"files: Field required"),
        (
            put({}, "files", "model.onnx"),
            r"files\.model\.onnx\.sha256: Field required, got {} \(and 1 more\)",
        ),
        (put("beef", "files", "model.onnx", "sha256"), r"String should match pattern .*got 'beef'"),
        (put(-1, "files", "model.onnx", "bytes"), r"Input should be greater than or equal to 0, got -1"),
        (put("me", "signed_by"), r"signed_by: Extra inputs are not permitted"),
        (put(2, "format"), r"format: Input should be 1"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_the_name_of_the_field(
    artifact: Path, change: Callable[[Json], None], message: str
) -> None:
    edit_json(artifact / "manifest.json", change)
    with pytest.raises(ProfileError, match=rf"manifest\.json: .*{message}.*guard calibrate"):
        read_artifact(artifact)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 5000])
@pytest.mark.parametrize("name", ["manifest.json", "profile.json"])
def test_a_file_that_is_no_json_object_is_refused(artifact: Path, name: str, content: bytes) -> None:
    if name == "manifest.json":
        (artifact / name).write_bytes(content)
    else:
        replace_file(artifact, name, content)
    with pytest.raises(ProfileError, match=rf"{name}: the whole file: .*guard calibrate") as refused:
        read_artifact(artifact)
    assert len(str(refused.value)) < 500


def test_a_profile_survives_its_own_json(artifact: Path) -> None:
    profile = read_artifact(artifact).profile
    assert Profile.model_validate_json(json.dumps(json.loads(profile.model_dump_json()))) == profile
    assert profile.input.size == (8, 8)
    assert profile.input.channels == 3
    assert profile.check.n_overlays == 8
    assert profile.check.blend_rule.name == "add"
    assert [bound.tolist() for bound in profile.input.value_range.bounds()] == [[[[0.0]]], [[[1.0]]]]


def test_a_channels_last_profile_knows_its_size_and_channels() -> None:
    profile = make_profile(linear_classifier(shape=(3, 6, 10), layout="NHWC"))
    assert profile.input.shape == (6, 10, 3)
    assert profile.input.size == (6, 10)
    assert profile.input.channels == 3
    assert np.shape(profile.input.value_range.bounds()[0]) == (1, 1, 1)
