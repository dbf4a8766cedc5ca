"""A repository on a disk that hangs: the status is told all the same, and requests are answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from control_house import PATIENCE_S, House, keeping

from guard.control import listing
from guard.repository import find_versions
from tests.artifacts import write_tiny_artifact


class Disk:
    """Lists a directory, unless it hangs."""

    def __init__(self) -> None:
        self.listed_by: list[str] = []
        self.answers = threading.Event()
        self.answers.set()

    def find_versions(self, directory: Path) -> tuple[Path, ...]:
        self.listed_by.append(threading.current_thread().name)
        assert self.answers.wait(PATIENCE_S)
        return find_versions(directory)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(listing, "find_versions", made.find_versions)
    yield made
    made.answers.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "TIMEOUT_S", 0.05)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "models")
    return tmp_path / "models"


async def seen(house: House) -> tuple[tuple[str, ...], str]:
    [status] = await house.keeper.status("tiny")
    return status.available, status.note


async def test_versions_are_never_listed_on_the_event_loop(repository: Path, disk: Disk) -> None:
    async with keeping(repository) as house:
        assert await seen(house) == (("1",), "")
        write_tiny_artifact(repository)
        assert await seen(house) == (("1", "2"), "")
    assert disk.listed_by == ["listing-tiny"] * 2


@pytest.mark.usefixtures("impatient")
async def test_while_the_disk_hangs_what_was_seen_last_is_told_and_said_to_be_that(
    repository: Path, disk: Disk
) -> None:
    hung = (
        f"the versions in {repository / 'tiny'} cannot be listed (no answer within 0.05 s), shown are those "
        f"that were seen last; see to the disk of the repository"
    )
    async with keeping(repository) as house:
        disk.answers.clear()
        assert await seen(house) == ((), hung)
        disk.answers.set()
        while (told := await seen(house))[1]:
            assert told == ((), hung)
        assert told == (("1",), "")

        disk.answers.clear()
        write_tiny_artifact(repository)
        before = len(disk.listed_by)
        assert [await seen(house) for _ in range(5)] == [(("1",), hung)] * 5
        async with asyncio.timeout(PATIENCE_S):
            while len(disk.listed_by) == before:  # noqa: ASYNC110 - a thread that has yet to begin
                await asyncio.sleep(0.01)
        assert len(disk.listed_by) == before + 1  # however many ask, one thread waits
        model = house.tiny.served.slot.current
        assert model is not None
        assert np.isfinite(model.classifier.logits(model.classifier._random_images(1))).all()

        disk.answers.set()
        while (told := await seen(house))[1]:
            assert told == (("1",), hung)
        assert told == (("1", "2"), "")


@pytest.mark.parametrize(
    ("error", "words"), [(OSError(5, "Input/output error"), "Input/output error"), (OSError(), "OSError")]
)
async def test_a_disk_that_fails_is_told_of_too(
    repository: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fail(_directory: Path) -> tuple[Path, ...]:
        raise error

    async with keeping(repository) as house:
        await seen(house)
        monkeypatch.setattr(listing, "find_versions", fail)
        assert await seen(house) == (
            ("1",),
            f"the versions in {repository / 'tiny'} cannot be listed ({words}), shown are those that were "
            f"seen last; see to the disk of the repository",
        )


@pytest.mark.usefixtures("impatient")
async def test_what_hangs_in_the_end_keeps_nobody_from_stopping(repository: Path, disk: Disk) -> None:
    async with keeping(repository) as house:
        disk.answers.clear()
        await seen(house)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "listing-tiny"]
    assert thread.daemon
    disk.answers.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
