"""What operators ask of all workers, where one of them is silent, busy, or only just there."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guard.control.api import CanaryStatus, VersionInfo
from guard.control.served_versions import FILE_NAME, ModelRecord, ServedVersion
from guard.errors import BusyError, OperationError, WorkerError
from guard.workers import control as control_module
from guard.workers.control import CrewControl
from guard.workers.lifeline import CANARY_ENDED, Lifeline
from guard.workers.place import WorkerPlace
from guard.workers.process import Process
from guard.workers.seat import Seat
from guard.workers.worker import Worker
from tests.serving import PATIENCE_S

CANDIDATE = VersionInfo("2", "2" * 64, "f" * 64, 0.5, 0.01, 100.0)


class NoProcess(Process):
    """A process that never was started."""

    def __init__(self) -> None:
        self.pid = 0


class FakeWorker(Worker):
    """A worker with a candidate, which says what it is told to say before it stops that."""

    def __init__(self, number: int, *says: Exception) -> None:
        super().__init__(number, Path(), patience_s=1.0)
        self.serves = True
        self.tries = True
        self.says = list(says)

    async def stop_canary(self, model: str) -> CanaryStatus:
        if self.says:
            raise self.says.pop(0)
        if not self.tries:
            raise OperationError(f"model {model!r} has no candidate that is tried")
        self.tries = False
        return CanaryStatus(CANDIDATE, 0.5, 10.0, False, "stopped", {})


def control_of(*workers: FakeWorker) -> CrewControl:
    control = CrewControl()
    control.crew = cast(Any, SimpleNamespace(workers=workers, serving=workers))
    control._canaries["tiny"] = ("2", 0.5)
    return control


def read_by(seat: Seat, state: Path) -> dict[str, ModelRecord]:
    with Path(os.devnull).open("wb") as nowhere:
        return WorkerPlace(seat, Lifeline(io.RawIOBase(), nowhere)).versions(state).read()


async def until_done(control: CrewControl) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while control._tasks:
            await asyncio.wait(set(control._tasks))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "_AGAIN_S", 0.0)


def test_a_candidate_that_ended_in_one_is_taken_off_one_that_is_busy_or_silent_just_then() -> None:
    async def run() -> list[bool]:
        first, second = FakeWorker(1), FakeWorker(2, BusyError("b"), WorkerError("w"))
        control = control_of(first, second)
        first.tries = False
        control.said(first, CANARY_ENDED, {"model": "tiny"})
        await until_done(control)
        return [first.tries, second.tries]

    assert asyncio.run(run()) == [False, False]


def test_a_candidate_that_nobody_could_stop_is_still_one_that_all_try() -> None:
    async def run() -> CrewControl:
        control = control_of(FakeWorker(1, BusyError("b")), FakeWorker(2, BusyError("b")))
        with pytest.raises(BusyError):
            await control.stop_canary("tiny")
        await until_done(control)
        return control

    assert asyncio.run(run())._canaries == {"tiny": ("2", 0.5)}


def test_a_stop_that_one_did_not_hear_is_told_and_made_up_for() -> None:
    async def run() -> tuple[bool, CrewControl]:
        second = FakeWorker(2, WorkerError("worker-2 does not answer"))
        control = control_of(FakeWorker(1), second)
        with pytest.raises(WorkerError, match="worker-2 does not answer"):
            await control.stop_canary("tiny")
        await until_done(control)
        return second.tries, control

    tries, control = asyncio.run(run())
    assert (tries, control._canaries) == (False, {})


def test_a_worker_that_joins_with_a_candidate_that_was_taken_off_meanwhile_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        first, joining = FakeWorker(1), FakeWorker(2)
        control = control_of(first)

        async def change_all(workers: object, step: object) -> None:
            control.said(first, CANARY_ENDED, {"model": "tiny"})

        monkeypatch.setattr(control_module, "change_all", change_all)
        with pytest.raises(WorkerError, match="a candidate came or went while it started"):
            await control.joins(joining)
        await control.joins(joining)  # there is none any more
        await until_done(control)

    asyncio.run(run())


def test_a_candidate_that_ends_in_one_before_it_has_begun_in_all_is_taken_off_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> tuple[bool, CrewControl]:
        first, second = FakeWorker(1), FakeWorker(2)
        control = control_of(first, second)
        control._canaries.clear()

        async def change_all(workers: object, step: object) -> list[CanaryStatus]:
            first.tries = False
            control.said(first, CANARY_ENDED, {"model": "tiny"})
            return [CanaryStatus(CANDIDATE, 0.5, 10.0, True, "", {})] * 2

        monkeypatch.setattr(control_module, "change_all", change_all)
        await control.start_canary("tiny", "2", share=0.5)
        await until_done(control)
        return second.tries, control

    tries, control = asyncio.run(run())
    assert (tries, control._canaries) == (False, {})


def test_what_is_said_while_the_guard_stops_is_no_error() -> None:
    async def run() -> None:
        control = control_of(FakeWorker(1))
        await control.close()
        control.said(control.crew.workers[0], CANARY_ENDED, {"model": "tiny"})

    asyncio.run(run())


def test_a_call_to_a_worker_that_says_nothing_any_more_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        worker = Worker(2, tmp_path, patience_s=1.0, answer_s=0.05)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(worker.seat.admin_socket))
            silent.listen()
            worker.take(NoProcess())
            with pytest.raises(WorkerError, match=r"^worker-2 does not answer: .*; if it goes on, end that"):
                await worker.answering(asyncio.sleep(PATIENCE_S))
            await worker.leave()

    asyncio.run(run())


def test_a_line_that_was_cut_off_does_not_hide_that_a_worker_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> int:
        child = await asyncio.create_subprocess_exec(
            "sh", "-c", """printf '{"kind": "rec'; exit 7""", stdout=asyncio.subprocess.PIPE
        )
        process = Process("worker-1", child, lambda kind, fields: None)
        code = await process.ended
        with pytest.raises(WorkerError, match="ended with exit code 7"):
            await process.ready
        return code

    assert asyncio.run(run()) == 7
    assert "what a worker said came to nothing" in caplog.text


@pytest.mark.parametrize("before", [None, "{", ModelRecord.of(ServedVersion(version="1", digest="1" * 64))])
def test_the_first_worker_catches_up_with_what_the_others_serve(
    tmp_path: Path, before: ModelRecord | str | None
) -> None:
    record = ModelRecord.of(ServedVersion(version="2", digest="2" * 64))
    state = tmp_path / "state"
    if before is not None:
        state.mkdir()
        written = before if isinstance(before, str) else json.dumps({"models": {"tiny": before.model_dump()}})
        (state / FILE_NAME).write_text(written)

    for number in (2, 1):
        seat = Seat(number=number, folder=tmp_path, records={"tiny": record})
        assert read_by(seat, state) == {"tiny": record}
        if number == 2:  # which keeps nothing on disk
            assert state.exists() == (before is not None)

    assert json.loads((state / FILE_NAME).read_text())["models"] == {"tiny": record.model_dump(mode="json")}


def test_a_first_worker_that_cannot_write_says_so_and_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = ModelRecord.of(ServedVersion(version="2", digest="2" * 64))
    (tmp_path / "state").write_text("no folder")
    seat = Seat(number=1, folder=tmp_path, records={"tiny": record})

    assert read_by(seat, tmp_path / "state") == {"tiny": record}
    assert "a restart may serve another version" in caplog.text
