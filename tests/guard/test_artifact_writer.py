"""Writing an artifact: it is there whole or not at all, under a version of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from guard.artifact import next_version, read_artifact, write_artifact, writer
from guard.errors import ArtifactError, UnsafePathError
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.tiny_models import linear_classifier


def write_with(directory: Path, extra_files: dict[str, bytes]) -> Path:
    model = linear_classifier()
    profile = make_profile(model)
    return write_artifact(
        directory,
        model=model.SerializeToString(),
        overlays=random_images(profile, 8),
        profile=profile,
        extra_files=extra_files,
    )


def failing_after(calls: int, error: BaseException) -> Callable[[int], None]:
    """Return an ``os.fsync`` whose disk fills up after some calls."""
    done = []

    def fsync(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > calls:
            raise error

    return fsync


def test_the_first_version_is_1_and_the_next_is_one_more_than_the_highest(tmp_path: Path) -> None:
    assert next_version(tmp_path / "absent") == 1
    assert next_version(tmp_path) == 1
    for name in ("9", "10", "2"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 11


def test_names_that_are_no_version_do_not_count(tmp_path: Path) -> None:
    for name in ("3", "007", "0", "-5", "1.5", "v8", "12x", ".writing-99", "٤"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 4


def test_a_stray_file_named_like_a_version_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "1").write_text("mine")
    assert write_tiny_artifact(tmp_path).name == "2"
    assert (tmp_path / "tiny" / "1").read_text() == "mine"


def test_versions_follow_each_other_and_the_old_ones_stay(tmp_path: Path) -> None:
    written = [write_tiny_artifact(tmp_path, boundary_bits=bits) for bits in (0.1, 0.2)]
    assert written == [tmp_path / "tiny" / "1", tmp_path / "tiny" / "2"]
    assert [read_artifact(path).profile.boundary.boundary_bits for path in written] == [0.1, 0.2]


def test_nothing_but_the_artifact_is_left_beside_it(tmp_path: Path) -> None:
    directory = write_with(tmp_path / "tiny", {"report/report.json": b"{}"})
    assert [entry.name for entry in directory.parent.iterdir()] == ["1"]
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    assert files == ["manifest.json", "model.onnx", "overlays.npy", "profile.json", "report/report.json"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_an_artifact_may_be_read_by_its_group_and_nobody_else(tmp_path: Path, umask: int) -> None:
    """Overlays are secret; a server under another user id reads them through the group."""
    before = os.umask(umask)
    try:
        directory = write_with(tmp_path / "tiny", {"report/report.json": b"{}"})
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert {path.stat().st_mode & 0o777 for path in (directory, directory / "report")} == {0o750}


@pytest.mark.parametrize("written_files", [0, 2, 3])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_files: int
) -> None:
    kept = write_tiny_artifact(tmp_path)
    monkeypatch.setattr(os, "fsync", failing_after(written_files, OSError(28, "No space left on device")))
    expected = r"cannot write an artifact in .*tiny: .*No space left on device; check --out"
    with pytest.raises(ArtifactError, match=expected):
        write_tiny_artifact(tmp_path)
    assert list(kept.parent.iterdir()) == [kept]
    assert read_artifact(kept).version == "1"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing_after(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_tiny_artifact(tmp_path)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_file_in_place_of_the_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("mine")
    with pytest.raises(ArtifactError, match=r"cannot write an artifact in .*tiny: .*check --out"):
        write_tiny_artifact(tmp_path)


def test_a_version_that_another_writer_took_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_tiny_artifact(tmp_path, boundary_bits=0.1)
    answers = iter([1, 1])  # as seen just before the other writer finished
    monkeypatch.setattr(writer, "next_version", lambda path: next(answers, None) or next_version(path))
    mine = write_tiny_artifact(tmp_path, boundary_bits=0.2)
    assert mine.name == "2"
    assert read_artifact(other).profile.boundary.boundary_bits == 0.1
    assert read_artifact(mine).profile.boundary.boundary_bits == 0.2


def test_writers_that_race_get_versions_of_their_own(tmp_path: Path) -> None:
    writers = 6
    barrier = Barrier(writers)

    def write(index: int) -> tuple[int, str]:
        barrier.wait(timeout=30)
        return index, write_tiny_artifact(tmp_path, boundary_bits=float(index)).name

    with ThreadPoolExecutor(writers) as pool:
        written = dict(pool.map(write, range(writers)))
    assert sorted(written.values()) == [str(version) for version in range(1, writers + 1)]
    for index, version in written.items():
        assert read_artifact(tmp_path / "tiny" / version).profile.boundary.boundary_bits == index
    assert len(list((tmp_path / "tiny").iterdir())) == writers


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a\\b", "C:x", "a\0b", "", "."])
def test_an_extra_file_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UnsafePathError, match=r"extra_files names the file .* expected a plain relative path"
    ):
        write_with(tmp_path / "tiny", {name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "./overlays.npy", "profile.json"])
def test_an_extra_file_cannot_stand_in_for_one_of_the_artifacts_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=rf"holds {Path(name).name}, which the artifact writes itself"):
        write_with(tmp_path / "tiny", {name: b"{}"})
    assert list(tmp_path.iterdir()) == []


def test_extra_files_that_get_in_each_others_way_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write an artifact in"):
        write_with(tmp_path / "tiny", {"report": b"", "report/report.json": b""})
    assert list((tmp_path / "tiny").iterdir()) == []
