"""At the start: what served last, or the last good version; what is written down, or cannot be."""

from __future__ import annotations

import json
import re
import resource
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from artifact_edits import replace_model
from control_house import keeping, load

from guard.artifact import Artifact
from guard.control.candidate import manifest_digest
from guard.control.served_versions import FILE_NAME, ModelRecord, ServedVersion, ServedVersions
from guard.control.start import versions_to_try
from guard.errors import ArtifactError, CandidateError, HashMismatchError, MissingFileError, SettingsError
from guard.runtime.loader import LoadedModel
from tests import tiny_models
from tests.artifacts import write_tiny_artifact
from tests.serving import PATIENCE_S


def damage(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"half")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for bits in (0.1, 0.2, 0.3):
        write_tiny_artifact(tmp_path / "models", boundary_bits=bits)
    return tmp_path / "models"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "guard"


def write(state: Path, content: bytes) -> None:
    state.mkdir(parents=True)
    (state / FILE_NAME).write_bytes(content)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def written(state: Path) -> dict[str, object]:
    content = json.loads((state / FILE_NAME).read_text())
    return dict(content["models"]["tiny"])


@contextmanager
def no_room_on_disk() -> Iterator[None]:
    """No file of this process may grow beyond 40 bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


async def test_a_restart_serves_what_served_and_can_roll_back_as_before(
    repository: Path, state: Path
) -> None:
    async with keeping(repository, state_dir=state) as house:
        assert house.serving == "3"
        await house.keeper.swap("tiny", "1")
        await house.keeper.swap("tiny", "2")

    async with keeping(repository, state_dir=state) as house:
        assert (house.serving, (await house.keeper.status())[0].previous) == ("2", ("1", "3"))
        assert (await house.keeper.rollback("tiny")).new.version == "1"

    async with keeping(repository, state_dir=state) as house:
        assert (house.serving, (await house.keeper.status())[0].previous) == ("1", ("3",))


async def test_without_a_state_a_restart_serves_the_highest(repository: Path) -> None:
    async with keeping(repository) as house:
        await house.keeper.swap("tiny", "1")
    async with keeping(repository) as house:
        assert house.serving == "3"


async def test_what_is_written_down_names_versions_and_digests(repository: Path, state: Path) -> None:
    async with keeping(repository, state_dir=state) as house:
        await house.keeper.swap("tiny", "1")

    digests = {version: manifest_digest(repository / "tiny" / version) for version in "13"}
    assert written(state) == {
        "current": {"version": "1", "digest": digests["1"]},
        "history": [{"version": "3", "digest": digests["3"]}],
        "newest": 3,
    }
    assert names_in(state) == [FILE_NAME]


async def test_a_truncated_newest_version_does_not_keep_the_guard_from_starting(repository: Path) -> None:
    damage(repository / "tiny" / "3")
    async with keeping(repository) as house:
        [status] = await house.keeper.status()
        assert (house.serving, house.kinds()) == ("2", ["candidate_failed", "loaded"])
        assert house.counted("guard_candidate_failures_total") == 1
        assert house.counted("guard_swaps_total", outcome="failed") == 0

    [failure] = status.failures
    assert failure.version == "3"
    assert "model.onnx: expected SHA-256" in failure.error
    assert house.events[0][1] == {
        "model": "tiny",
        "actor": "start",
        "version": "3",
        "serving": "",
        "error": failure.error,
    }


async def test_what_served_and_is_damaged_since_gives_way_to_what_served_before(
    repository: Path, state: Path
) -> None:
    async with keeping(repository, state_dir=state) as house:
        await house.keeper.swap("tiny", "1")
        await house.keeper.swap("tiny", "2")
    damage(repository / "tiny" / "2")

    async with keeping(repository, state_dir=state) as house:
        assert (house.serving, (await house.keeper.status())[0].previous) == ("1", ("3",))


async def test_what_served_and_is_another_artifact_since_does_not_serve(
    repository: Path, state: Path
) -> None:
    async with keeping(repository, state_dir=state) as house:
        await house.keeper.swap("tiny", "2")
    replace_model(repository / "tiny" / "2", tiny_models.linear_classifier(seed=5))

    async with keeping(repository, state_dir=state) as house:
        assert house.serving == "3"
        assert "has the digest" in house.events[0][1]["error"]


async def test_of_several_versions_that_cannot_be_served_all_reasons_are_told_in_order(
    repository: Path,
) -> None:
    damage(repository / "tiny" / "3")
    (repository / "tiny" / "2" / "manifest.json").unlink()
    async with keeping(repository) as house:
        [started] = await house.keeper.status()
        with pytest.raises(CandidateError):
            await house.keeper.swap("tiny", "3")
        [since] = await house.keeper.status()

    assert [failure.version for failure in started.failures] == ["3", "2"]
    assert "3/model.onnx: expected SHA-256" in started.failures[0].error
    assert "2/manifest.json is missing" in started.failures[1].error
    assert [failure.version for failure in since.failures] == ["2", "3"]
    assert since.failures[0] == started.failures[1]
    assert since.failures[1].error == started.failures[0].error


async def test_where_no_version_can_be_served_what_is_wrong_with_each_is_told_in_order(
    repository: Path,
) -> None:
    for version in ("1", "2"):
        (repository / "tiny" / version / "manifest.json").unlink()
    damage(repository / "tiny" / "3")
    tiny = re.escape(str(repository / "tiny"))
    said = (
        rf"^no version of model 'tiny' can be served, .* calibrate again: "
        rf"version '3': {tiny}/3/model\.onnx: expected .*; "
        rf"version '2': {tiny}/2/manifest\.json is missing; .*; "
        rf"version '1': {tiny}/1/manifest\.json is missing; "
    )
    with pytest.raises(ArtifactError, match=said):
        async with keeping(repository):
            pass


async def test_where_the_only_version_cannot_be_served_its_own_error_is_raised(tmp_path: Path) -> None:
    damage(write_tiny_artifact(tmp_path))
    with pytest.raises(HashMismatchError, match=r"tiny/1/model\.onnx"):
        async with keeping(tmp_path):
            pass


async def test_of_versions_that_cannot_be_served_but_one_at_most_stays_in_memory(repository: Path) -> None:
    loaded: list[weakref.ref[set[int]]] = []
    alive: list[int] = []

    def count() -> int:
        return sum(one() is not None for one in loaded)

    def spoiled(name: str, directory: Path, approve: Callable[[Artifact], None]) -> LoadedModel:
        patient = time.monotonic() + PATIENCE_S
        while count() > 1 and time.monotonic() < patient:
            time.sleep(0.01)  # the thread that loaded the last one may not have let go of it yet
        alive.append(count())
        if directory.name == "1":
            return load(name, directory, approve)
        weights = set(range(10))
        loaded.append(weakref.ref(weights))
        raise ArtifactError(f"{directory} answers otherwise than at calibration")

    for _ in range(3):
        write_tiny_artifact(repository)
    async with keeping(repository, load=spoiled) as house:
        assert house.serving == "1"

    assert len(alive) == 6
    assert max(alive) == 1


async def test_a_model_whose_versions_are_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(MissingFileError, match="tiny holds no version any more"):
        async with keeping(tmp_path):
            pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"format": 2, "models": {}}',
        b'{"models": {"tiny": {"current": {"version": "../2", "digest": "'
        + b"0" * 64
        + b'"}, "newest": 1}}}',
        b'{"models": {"tiny": {"current": {"version": "1", "digest": "short"}, "newest": 1}}}',
    ],
)
async def test_a_record_that_makes_no_sense_is_told_and_passed_over(
    repository: Path, state: Path, content: bytes
) -> None:
    write(state, content)

    async with keeping(repository, state_dir=state) as house:
        assert (house.serving, house.kinds()) == ("3", ["record_failed", "loaded"])
        assert (
            f"{state / FILE_NAME} cannot be used to tell which versions served" in house.events[0][1]["error"]
        )
        assert house.counted("guard_version_record_failures_total") == 1
    assert written(state)["newest"] == 3


async def test_a_record_that_cannot_be_read_is_told_too(repository: Path, state: Path) -> None:
    (state / FILE_NAME).mkdir(parents=True)
    with pytest.raises(SettingsError, match="Is a directory"):
        ServedVersions(state).read()
    async with keeping(repository, state_dir=state) as house:
        assert (house.serving, house.kinds()) == ("3", ["record_failed", "loaded", "record_failed"])


async def test_on_a_full_disk_the_swap_is_made_and_the_record_stays_the_old_one(
    repository: Path, state: Path
) -> None:
    async with keeping(repository, state_dir=state) as house:
        before = (state / FILE_NAME).read_bytes()
        with no_room_on_disk():
            report = await house.keeper.swap("tiny", "1", actor="ops")
        assert (house.serving, report.changed) == ("1", True)
        assert house.kinds() == ["loaded", "swapped", "record_failed"]
        assert house.counted("guard_version_record_failures_total") == 1
        assert (state / FILE_NAME).read_bytes() == before
        assert names_in(state) == [FILE_NAME]

        again = await house.keeper.swap("tiny", "2")

    assert "version '1' of model 'tiny' serves, but that could not be written down ([Errno 27]" in report.note
    assert again.note == ""
    assert [past["version"] for past in written(state)["history"]] == ["1", "3"]  # type: ignore[attr-defined]


async def test_a_state_that_cannot_be_made_does_not_keep_the_guard_from_serving(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    async with keeping(repository, state_dir=tmp_path / "file" / "state") as house:
        assert house.kinds()[-1] == "record_failed"
        assert (await house.keeper.swap("tiny", "1")).note.startswith(
            "version '1' of model 'tiny' serves, but"
        )


def test_the_record_of_one_model_leaves_that_of_another(tmp_path: Path) -> None:
    one, other = (ModelRecord.of(ServedVersion(version=v, digest=v * 64)) for v in "12")
    versions = ServedVersions(tmp_path)
    versions.write("one", one)
    versions.write("other", other)

    again = ServedVersions(tmp_path)
    assert again.read() == {"one": one, "other": other}
    again.write("one", other)
    assert ServedVersions(tmp_path).read() == {"one": other, "other": other}
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o640


def test_the_history_is_bounded() -> None:
    record = ModelRecord.of(ServedVersion(version="1", digest="0" * 64))
    for number in range(2, 40):
        record = record.swapped_to(ServedVersion(version=str(number), digest="0" * 64))
    assert [past.version for past in record.history] == [str(number) for number in range(38, 22, -1)]


def test_versions_are_tried_from_what_served_downwards_and_higher_ones_last() -> None:
    versions = [Path(str(number)) for number in (1, 2, 3, 4, 9, 10)]
    past = [ServedVersion(version=version, digest="0" * 64) for version in ("3", "9", "7", "1")]
    record = ModelRecord(current=past[0], history=tuple(past[1:]), newest=9)

    assert [path.name for path in versions_to_try(versions, None)] == ["10", "9", "4", "3", "2", "1"]
    assert [path.name for path in versions_to_try(versions, record)] == ["3", "9", "1", "2", "10", "4"]
