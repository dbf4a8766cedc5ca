"""What a healing takes in: the model, its images parted in three, and quarantined inputs."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.data import ImageSet  # noqa: E402
from calibration.errors import DataError, OptionError, TooFewImagesError  # noqa: E402
from calibration.heal.options import heal_options  # noqa: E402
from calibration.heal.parts import least_to_calibrate, part_images  # noqa: E402
from calibration.heal.subject import Check, fitting_transform, read_clean, read_subject  # noqa: E402
from calibration.heal.suspects import led_to, read_suspects  # noqa: E402
from calibration.preprocessing import Transform, plan_input  # noqa: E402
from guard.artifact import Preprocessing, read_artifact, write_artifact  # noqa: E402
from guard.artifact.signature import Signature  # noqa: E402
from guard.errors import GuardError, MissingFileError, UnsafeArrayError  # noqa: E402
from tests.artifacts import write_tiny_artifact  # noqa: E402

SIGNATURE = Signature("images", "FP32", (4, 4, 3), "NHWC", None, "scores", "FP32", 5)
CHECK = Check(overlays=8, frr=0.1, confidence=0.9)


def image_set(count: int, copies: int = 0) -> ImageSet:
    images = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), np.uint8)
    images[count - copies :] = images[:copies]
    return ImageSet(images, None, None, "digest")


def parted(images: ImageSet, **changes: Any) -> Any:
    given: dict[str, Any] = {"calibrate_share": 0.25, "judge_share": 0.2, "seed": 0, "where": "--data x"}
    return part_images(images, CHECK, **{**given, **changes})


def test_the_parts_share_no_image_and_have_the_shares_asked_for() -> None:
    parts = parted(image_set(400))
    assert [len(parts.learn), len(parts.judge), len(parts.calibrate)] == [220, 80, 100]
    assert sorted([*parts.learn, *parts.judge, *parts.calibrate]) == list(range(400))
    assert parts.learn.tolist() == parted(image_set(400)).learn.tolist()
    assert parts.learn.tolist() != parted(image_set(400), seed=1).learn.tolist()
    assert len(parted(image_set(400), judge_share=0.0).judge) == 0


def test_a_guarantee_gets_the_images_it_takes_and_copies_are_not_learned_from() -> None:
    assert least_to_calibrate(CHECK) == 22 + 8
    assert least_to_calibrate(Check()) == 299 + 32
    images = image_set(200, copies=60)
    parts = parted(images, calibrate_share=0.01)
    assert len(parts.calibrate) == 30
    learned = {image.tobytes() for image in images.images[parts.learn]}
    held = {image.tobytes() for image in images.images[[*parts.judge, *parts.calibrate]]}
    assert not learned & held
    assert parts.copies == 130 - len(parts.learn) > 0


@pytest.mark.parametrize(
    ("count", "detector", "calibrated"),
    [(1000, "auto", 22 + 8 + 300), (1000, "strip", 250), (500, "auto", 125), (4000, "fused", 1000)],
)
def test_what_is_healed_is_watched_by_the_fused_detector_where_enough_is_left_to_learn_from(
    count: int, detector: Any, calibrated: int
) -> None:
    check = replace(CHECK, detector=detector)
    parts = part_images(image_set(count), check, calibrate_share=0.25, judge_share=0.2, seed=0, where="x")
    assert len(parts.calibrate) == calibrated
    assert 3 * len(parts.learn) >= count


def test_what_is_judged_by_is_not_learned_from_wherever_it_lies() -> None:
    images = image_set(400)
    apart = ImageSet(images.images[:100], None, None, "digest")
    parts = parted(images, judge_share=0.0, apart=apart)
    assert not set(parts.learn.tolist()) & set(range(100))
    assert parts.copies == 300 - len(parts.learn) > 0
    with pytest.raises(
        TooFewImagesError, match=r"leaves 0 images to repair with, .*: 300 others equal"
    ) as all_of:
        parted(images, judge_share=0.0, apart=images)
    assert (all_of.value.needed, all_of.value.got) == (40, 0)


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(
        TooFewImagesError, match=r"--data x holds 89 images, expected at least 90: 30 to"
    ) as caught:
        parted(image_set(89))
    assert (caught.value.needed, caught.value.got) == (90, 89)
    assert len(parted(image_set(90)).learn) == 40


def arrays(count: int = 6, **changes: Any) -> dict[str, np.ndarray]:
    images = np.random.default_rng(2).random((count, 4, 4, 3), np.float32)
    return {"images": images, "scores": np.ones(count), "labels": np.arange(count) % 5, **changes}


def test_suspects_come_from_a_file_or_from_all_files_of_a_folder(tmp_path: Path) -> None:
    first, second = arrays(), arrays(3)
    del second["labels"]
    np.savez(tmp_path / "a.npz", **first)
    np.savez(tmp_path / "b.npz", **second)
    one, both = (read_suspects(path, SIGNATURE, 5) for path in (tmp_path / "a.npz", tmp_path))
    assert one.images.tolist() == first["images"].transpose(0, 3, 1, 2).tolist()
    assert both.labels.tolist() == [0, 1, 2, 3, 4, 0, -1, -1, -1]
    assert (len(both), both.files, both.digest == one.digest) == (9, 2, False)


def test_suspects_of_no_number_are_left_out(tmp_path: Path) -> None:
    broken = arrays()
    broken["images"][1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", **broken)
    read = read_suspects(tmp_path / "a.npz", SIGNATURE, 5)
    assert (read.labels.tolist(), read.left_out) == ([0, 2, 3, 4, 0], 1)
    np.savez(tmp_path / "a.npz", images=np.full((2, 4, 4, 3), np.inf, np.float32))
    with pytest.raises(DataError, match="holds no images of finite values"):
        read_suspects(tmp_path / "a.npz", SIGNATURE, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((6, 3, 4, 4), np.float32)},
            "shape 3 x 4 x 4, the model takes float32 of 4 x 4 x 3",
        ),
        ({"images": np.zeros((6, 4, 4, 3), np.uint8)}, "images are uint8"),
        ({"labels": np.zeros(5, np.int64)}, "one whole number for each of 6 images"),
        ({"labels": np.full(6, 5)}, "labels go from 5 to 5, expected classes of the model, 0 to 4"),
        ({"labels": np.zeros(6)}, "labels are float64"),
    ],
)
def test_suspects_of_another_model_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(DataError, match=message):
        read_suspects(tmp_path / "a.npz", SIGNATURE, 5)


def test_suspects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], object))
    with pytest.raises(UnsafeArrayError, match="never read"):
        read_suspects(tmp_path / "a.npz", SIGNATURE, 5)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "c.npz", np.zeros(3))
    (tmp_path / "empty").mkdir()
    for name in ("b.npz", "c.npz.npy", "empty", "gone.npz"):
        with pytest.raises(DataError, match="--suspects"):
            read_suspects(tmp_path / name, SIGNATURE, 5)
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as raw:
        raw.writestr("images.npy", b"no array")
    with pytest.raises(DataError, match=r"raw\.npz cannot be read \(a member is no array\)"):
        read_suspects(tmp_path / "raw.npz", SIGNATURE, 5)
    np.savez(tmp_path / "d.npz", scores=np.ones(3))
    with pytest.raises(DataError, match="expected the array 'images'"):
        read_suspects(tmp_path / "d.npz", SIGNATURE, 5)


def test_a_label_stands_out_only_above_what_clean_images_get() -> None:
    clean = np.array([0] * 80 + [1, 2, 3, 4] * 5)
    assert led_to(np.array([0] * 16 + [1, 2, 3, 4]), clean, 5) is None
    assert led_to(np.array([2] * 12 + [0] * 8), clean, 5) == 2


def options(**changes: Any) -> Any:
    return heal_options({"model": "m", "data": "d.npz", "out": "work", **changes})


def test_a_model_that_is_none_is_refused_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "repository" / "m" / "1").mkdir(parents=True)
    cases: list[tuple[Path, type[GuardError], str]] = [
        (tmp_path / "nothing", OptionError, "expected an artifact, .*there is nothing of that name"),
        (tmp_path / "model.pt", OptionError, "expected an artifact"),
        (tmp_path / "model.onnx", OptionError, "--publish is missing"),
        (tmp_path / "empty", MissingFileError, "holds no version"),
        (tmp_path / "repository", MissingFileError, "it is a repository, give .*repository/m"),
        (tmp_path / "repository" / "m", MissingFileError, "manifest.json is missing"),
    ]
    for path, error, message in cases:
        with pytest.raises(error, match=message):
            read_subject(options(model=str(path)))


def test_the_next_version_keeps_the_settings_of_the_highest_but_for_those_that_are_given(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        write_tiny_artifact(tmp_path)
    kept = read_subject(options(model=str(tmp_path / "tiny")))
    profile = kept.profile
    assert profile is not None
    assert (kept.version, kept.publish) == ("2", tmp_path / "tiny")
    assert (kept.check.blend, kept.check.rounds) == (profile.check.blend, profile.check.rounds)
    assert (kept.check.frr, kept.check.name) == (profile.boundary.frr, profile.model_name)
    assert read_subject(options(model=str(tmp_path / "tiny" / "1"))).version == "1"
    changed = read_subject(
        options(model=str(tmp_path / "tiny"), publish=tmp_path / "other", blend="convex", overlays=3)
    ).check
    assert (changed.blend, changed.overlays, changed.rounds, changed.name) == ("convex", 3, None, None)


@pytest.mark.parametrize(("made", "kept"), [("exact", "exact"), ("fp16", "fp16"), ("tf32", "exact")])
def test_the_next_version_keeps_the_precision_that_needs_no_gpu(tmp_path: Path, made: str, kept: str) -> None:
    first = read_artifact(write_tiny_artifact(tmp_path))
    check = first.profile.check.model_copy(update={"precision": made})
    write_artifact(
        tmp_path / "tiny",
        model=first.model.SerializeToString(),
        overlays=first.overlays,
        profile=first.profile.model_copy(update={"check": check}),
    )
    assert read_subject(options(model=str(tmp_path / "tiny"))).check.precision == kept


def test_the_next_version_names_its_classes_and_prepares_images_as_the_last_did(tmp_path: Path) -> None:
    names = tuple(f"name {index}" for index in range(10))
    record = Preprocessing(scale=1 / 255, resize=(9,), crop=(8, 8), colour="BGR", eight_bit=True)
    write_tiny_artifact(tmp_path, labels=names, preprocessing=record)
    given = options(model=str(tmp_path / "tiny"), data=str(tmp_path / "d.npz"))
    subject = read_subject(given)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels)

    images, transform = read_clean(subject, given, tmp_path / "d.npz", None)
    next_version = subject.check.calibration(tmp_path / "m", tmp_path / "d.npz", subject, transform, given)

    assert images.images.shape == (4, 8, 8, 3)
    prepared = plan_input(subject.signature, images.images, transform)
    assert prepared.record == record
    assert next_version.class_names == names
    # What has the model's size is left alone: a healing writes its parts, and reads them again.
    np.savez(tmp_path / "part.npz", images=images.images)
    again, _ = read_clean(subject, given, tmp_path / "part.npz", None)
    np.testing.assert_array_equal(again.images, images.images)


def test_labels_that_the_model_has_no_class_for_are_refused_by_the_name_they_were_given_by(
    tmp_path: Path,
) -> None:
    write_tiny_artifact(tmp_path)
    given = options(model=str(tmp_path / "tiny"))
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "l.npy", np.array([0, 99]))
    said = re.escape(f"{tmp_path / 'l.npy'}: image 1 has label 99, the model has ")
    with pytest.raises(DataError, match=said):
        read_clean(read_subject(given), given, tmp_path / "d.npz", tmp_path / "l.npy")


def test_images_stored_otherwise_than_the_artifacts_are_refused(tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path)
    subject = read_subject(options(model=str(tmp_path / "tiny")))
    assert subject.profile is not None
    shape = (4, 8, 8, 3)
    unit = np.random.default_rng(0).random(shape, np.float32)
    settled = fitting_transform(subject, unit, Transform(), "x")
    assert settled.value_range == (0.0, 1.0)
    assert fitting_transform(subject, unit * 0.5, Transform(), "x").value_range == (0.0, 1.0)
    with pytest.raises(OptionError, match="widen it"):
        fitting_transform(subject, unit * 9, Transform(), "x")
    with pytest.raises(OptionError, match="was calibrated for 0 to 1; store them as"):
        fitting_transform(subject, unit * 9, Transform(value_range=(0.0, 9.0)), "x")
