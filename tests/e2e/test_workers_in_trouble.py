"""Workers that are stuck, killed in the middle of a change, or left alone; and places that cannot be had."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from guard.admin.client import AdminClient, Connection
from guard.control.served_versions import FILE_NAME
from guard.errors import OperationError
from tests.e2e.guard_process import LOCAL, Process
from tests.e2e.test_workers import Crew, write_version
from tests.serving import PATIENCE_S

pytestmark = pytest.mark.e2e


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Version 1 accepts all, version 2 flags all and serves."""
    for boundary_bits in (0.0, 100.0):
        write_version(tmp_path / "models", boundary_bits=boundary_bits)
    return tmp_path / "models"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def on_disk(folder: Path) -> str:
    return str(json.loads((folder / "state" / FILE_NAME).read_text())["models"]["tiny"]["current"]["version"])


def test_what_the_others_changed_is_written_down_by_the_one_that_was_killed_before_it_could(
    models: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    crew = Crew.of(models, tmp_path, state_dir=state)
    reports: list[str] = []

    def swap() -> None:
        with crew.admin() as admin:
            reports.append(admin.swap("tiny", "1").new.version)

    beside = state / f".{FILE_NAME}.writing"
    os.mkfifo(beside)  # nobody reads from it, so that it is never written
    with meanwhile(swap):
        while crew.process.wait_for("model swapped")["worker"] != "worker-2":
            pass
        os.kill(crew.pid(1), signal.SIGKILL)
        crew.process.wait_for("a worker ended")
        beside.unlink()
    crew.process.wait_for("a worker serves again")
    served = crew.serving()
    assert crew.process.end(signal.SIGTERM) == 0

    assert (reports, served, on_disk(tmp_path)) == (["1"], "1", "1")


def test_one_that_is_stuck_in_the_middle_of_a_change_is_killed_and_the_guard_still_stops(
    models: Path, tmp_path: Path
) -> None:
    crew = Crew.of(models, tmp_path, drain_timeout_s=0.5)

    def swap() -> None:
        with crew.admin() as admin, pytest.raises(OperationError):
            admin.swap("tiny", "1")

    with stopped(crew.pid(2)), meanwhile(swap):  # which keeps the first one waiting for the second
        while crew.process.wait_for("loading a version")["worker"] != "worker-1":
            pass
        os.kill(crew.pid(1), signal.SIGSTOP)
        code = crew.process.end(signal.SIGTERM)

    assert code != 0
    assert "workers did not stop as they should" in crew.process.lines[-1]


def test_workers_whose_parent_is_gone_end_at_once_and_leave_nothing_behind(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tempfile.TemporaryDirectory(prefix="g")  # a socket's path has 100 bytes at most
    monkeypatch.setenv("TMPDIR", short.name)
    crew = Crew.of(models, tmp_path, drain_timeout_s=10 * PATIENCE_S)
    [folder] = Path(short.name).glob("guard-*")
    handles = [os.pidfd_open(crew.pid(number)) for number in (1, 2)]

    crew.process.end(signal.SIGKILL)

    for handle in handles:
        assert select.select([handle], [], [], PATIENCE_S)[0]  # though requests were to have longer
        os.close(handle)
    assert not folder.exists()
    short.cleanup()


def test_a_folder_whose_path_is_too_long_for_sockets_is_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))

    process = Process.start("serve", "--repository", models, *LOCAL, "--workers", 2)

    assert process.end() == 2
    assert f"error: workers: the folder for their sockets is {deep}" in process.lines[-1]
    assert process.lines[-1].endswith("expected at most 100; set TMPDIR to a shorter one")


def test_an_admin_socket_that_somebody_has_is_told_before_anything_is_loaded(
    models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        process = Process.start(
            "serve", "--repository", models, *LOCAL, "--workers", 2, "--admin-socket", path
        )
        code = process.end()

    assert code == 2
    assert [line.startswith("error: admin_socket") for line in process.lines] == [True]


def test_a_change_while_a_worker_is_started_again_is_refused_as_busy_and_made_by_who_waits(
    models: Path, tmp_path: Path
) -> None:
    crew = Crew.of(models, tmp_path)
    served, away = models / "tiny" / "2", tmp_path / "away"
    served.rename(away)  # which the worker needs that is started again
    os.kill(crew.pid(2), signal.SIGKILL)
    crew.process.wait_for("a worker cannot join the others")

    at_once = AdminClient(Connection(f"unix:{crew.socket}", timeout_s=PATIENCE_S))
    with at_once as admin, pytest.raises(OperationError) as refused:
        admin.swap("tiny", "1")
    away.rename(served)
    with crew.admin() as admin:  # which waits
        changed = admin.swap("tiny", "1").changed

    assert str(refused.value) == "worker-2 is being started again; try again in a while"
    assert changed
    assert crew.process.end(signal.SIGTERM) == 0
