"""Watching the repository: what is taken over, and what is not."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from control_house import PATIENCE_S, Gate, House, keeping, load

from guard.control.watcher import look
from guard.errors import CandidateError, UnfitModelError
from guard.runtime.loader import LoadedModel
from tests.artifacts import write_tiny_artifact


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "models")
    return tmp_path / "models"


async def after_a_look(house: House) -> str:
    await look(house.tiny)
    return house.serving


async def test_a_higher_version_is_taken_over_and_said_to_be(repository: Path) -> None:
    async with keeping(repository) as house:
        assert await after_a_look(house) == "1"
        write_tiny_artifact(repository)
        write_tiny_artifact(repository)
        assert await after_a_look(house) == "3"
        assert await after_a_look(house) == "3"

    assert house.kinds() == ["loaded", "swapped"]
    assert house.events[-1][1]["actor"] == "watch"


async def test_it_goes_on_by_itself(repository: Path) -> None:
    swapped = asyncio.Event()

    def listen(kind: str, fields: object) -> None:
        if kind == "swapped":
            swapped.set()

    async with keeping(repository, on_event=listen) as house:
        house.keeper.watch(0.01)
        for version in ("2", "3"):
            swapped.clear()
            write_tiny_artifact(repository)
            await asyncio.wait_for(swapped.wait(), PATIENCE_S)
            assert house.serving == version


async def test_what_is_half_written_is_not_seen(repository: Path) -> None:
    whole = write_tiny_artifact(repository)
    async with keeping(repository) as house:
        shutil.copytree(whole, repository / "tiny" / ".writing-3")
        shutil.copytree(whole, repository / "tiny" / "3", ignore=shutil.ignore_patterns("manifest.json"))
        assert (await after_a_look(house), house.kinds()) == ("2", ["loaded"])

        shutil.copy(whole / "manifest.json", repository / "tiny" / "3")
        assert await after_a_look(house) == "3"


async def test_one_that_fails_is_not_tried_again_until_its_manifest_changes(repository: Path) -> None:
    async with keeping(repository) as house:
        bad = write_tiny_artifact(repository)
        manifest = (bad / "manifest.json").read_bytes()
        (bad / "manifest.json").write_bytes(b"{}")
        for _ in range(3):
            assert await after_a_look(house) == "1"
        assert house.counted("guard_candidate_failures_total") == 1

        (bad / "manifest.json").write_bytes(manifest)
        assert await after_a_look(house) == "2"


async def test_one_that_is_copied_with_its_manifest_first_is_taken_once_it_is_whole(repository: Path) -> None:
    async with keeping(repository) as house:
        whole, copied = repository / "tiny" / "1", repository / "tiny" / "2"
        copied.mkdir()
        model = (whole / "model.onnx").read_bytes()
        for path in whole.iterdir():
            if path.name != "model.onnx":
                shutil.copy(path, copied)
        assert [await after_a_look(house) for _ in range(2)] == ["1", "1"]
        (copied / "model.onnx").write_bytes(model[:100])
        assert [await after_a_look(house) for _ in range(2)] == ["1", "1"]
        assert house.counted("guard_candidate_failures_total") == 2

        (copied / "model.onnx").write_bytes(model)
        assert await after_a_look(house) == "2"


async def test_where_the_highest_fails_the_one_below_it_is_taken(repository: Path) -> None:
    async with keeping(repository) as house:
        write_tiny_artifact(repository)
        (write_tiny_artifact(repository) / "model.onnx").write_bytes(b"")
        assert [await after_a_look(house) for _ in range(3)] == ["1", "2", "2"]


async def test_one_that_failed_at_the_start_is_not_tried_again(repository: Path) -> None:
    (write_tiny_artifact(repository) / "model.onnx").write_bytes(b"")
    async with keeping(repository) as house:
        assert await after_a_look(house) == "1"
        assert house.counted("guard_candidate_failures_total") == 1


async def test_a_digest_that_was_mistyped_is_not_held_against_a_version(repository: Path) -> None:
    async with keeping(repository) as house:
        write_tiny_artifact(repository)
        with pytest.raises(CandidateError, match="it is not the artifact that is meant"):
            await house.keeper.swap("tiny", "2", digest="0" * 64)
        assert await after_a_look(house) == "2"


async def test_a_version_that_an_operator_had_no_room_for_is_taken_once_there_is(repository: Path) -> None:
    free = [2**16]
    async with keeping(repository, free_bytes=lambda: free[0]) as house:
        write_tiny_artifact(repository)
        with pytest.raises(CandidateError, match="of memory to be loaded"):
            await house.keeper.swap("tiny", "2")
        free[0] = 2**40
        assert await after_a_look(house) == "2"


async def test_a_version_without_room_is_tried_again_some_looks_later(repository: Path) -> None:
    free = [2**16]
    async with keeping(repository, free_bytes=lambda: free[0]) as house:
        write_tiny_artifact(repository)
        assert [await after_a_look(house) for _ in range(7)] == ["1"] * 7
        assert house.counted("guard_candidate_failures_total") == 2
        free[0] = 2**40
        assert [await after_a_look(house) for _ in range(6)] == [*"11111", "2"]


async def test_a_version_without_room_does_not_keep_one_below_it_from_its_turn(repository: Path) -> None:
    def load_but_3(name: str, directory: Path, approve: Any) -> LoadedModel:
        if directory.name == "3":
            raise MemoryError
        return load(name, directory, approve)

    async with keeping(repository, load=load_but_3) as house:
        write_tiny_artifact(repository)
        write_tiny_artifact(repository)
        assert [await after_a_look(house) for _ in range(2)] == ["1", "2"]


async def test_what_a_disk_would_not_read_for_a_while_is_taken_afterwards(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "model.onnx":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    async with keeping(repository) as house:
        write_tiny_artifact(repository)
        with monkeypatch.context() as broken:
            broken.setattr(Path, "read_bytes", fail)
            with pytest.raises(CandidateError, match="Input/output error"):
                await house.keeper.swap("tiny", "2")
        assert await after_a_look(house) == "2"


async def test_one_that_had_no_room_at_the_start_is_tried_again(repository: Path) -> None:
    full = [True]

    def load_with_room(name: str, directory: Path, approve: Any) -> LoadedModel:
        if full[0] and directory.name == "2":
            raise UnfitModelError("ONNX Runtime cannot load the model: Failed to allocate memory for it")
        return load(name, directory, approve)

    write_tiny_artifact(repository)
    async with keeping(repository, load=load_with_room) as house:
        assert house.serving == "1"
        full[0] = False
        assert await after_a_look(house) == "2"


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_rolled_back_from_is_not_taken_again_but_what_is_higher_is(
    repository: Path, tmp_path: Path, restarted: bool
) -> None:
    write_tiny_artifact(repository)
    state = tmp_path / "state"
    async with keeping(repository, state_dir=state) as house:
        await house.keeper.swap("tiny", "1")
        await house.keeper.swap("tiny", "2")
        await house.keeper.rollback("tiny")
        if not restarted:
            assert await after_a_look(house) == "1"
            write_tiny_artifact(repository)
            assert await after_a_look(house) == "3"
            return
    async with keeping(repository, state_dir=state) as house:
        assert await after_a_look(house) == "1"
        write_tiny_artifact(repository)
        assert await after_a_look(house) == "3"


async def test_nothing_is_ever_taken_that_is_lower(repository: Path) -> None:
    write_tiny_artifact(repository)
    async with keeping(repository) as house:
        shutil.rmtree(repository / "tiny" / "2")
        assert await after_a_look(house) == "2"


async def test_while_an_operation_runs_it_waits_for_the_next_look(repository: Path) -> None:
    gate = Gate()
    gate.open.set()
    async with keeping(repository, load=gate.load) as house:
        write_tiny_artifact(repository)
        gate.open.clear()
        swap = asyncio.create_task(house.keeper.swap("tiny"))
        await asyncio.sleep(0)
        write_tiny_artifact(repository)
        assert await after_a_look(house) == "1"
        gate.open.set()
        await swap
        assert await after_a_look(house) == "3"


async def test_a_repository_that_is_away_for_a_while_does_no_harm(repository: Path) -> None:
    async with keeping(repository) as house:
        away = (repository / "tiny").rename(repository / "away")
        assert await after_a_look(house) == "1"
        away.rename(repository / "tiny")
        write_tiny_artifact(repository)
        assert await after_a_look(house) == "2"
