"""Several workers behind one port are one guard: they serve, count, change and stop together."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.admin.client import AdminClient, Connection
from guard.control.served_versions import FILE_NAME
from guard.errors import OperationError
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.e2e.guard_process import GUARD, LOCAL, Process, Served, summed
from tests.serving import PATIENCE_S, infer_request
from tests.tiny_models import linear_classifier

pytestmark = pytest.mark.e2e

IMAGES = random_images(make_profile(linear_classifier()), 1, seed=3)
WORKERS = {"worker-1", "worker-2"}


def write_version(repository: Path, *, boundary_bits: float) -> None:
    write_tiny_artifact(repository, model=linear_classifier(), boundary_bits=boundary_bits, probed=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 accepts all, version 2 flags all."""
    models = tmp_path_factory.mktemp("repository")
    for boundary_bits in (0.0, 100.0):
        write_version(models, boundary_bits=boundary_bits)
    return models


@dataclass
class Crew(Served):
    """A guard with two workers."""

    socket: Path = Path()

    @classmethod
    def of(cls, repository: Path, folder: Path, **variables: object) -> Crew:
        admin = folder / "admin.sock"
        served = Served.start(
            repository,
            *("--workers", "2", "--policy", "flag", "--admin-socket", str(admin)),
            **{f"GUARD_{name.upper()}": str(value) for name, value in variables.items()},
        )
        return cls(served.process, served.port, served.metrics_port, admin)

    def pid(self, number: int) -> int:
        """Return the process that a worker is now."""
        pids = [r["workers"][number - 1] for r in self.process.records if r["message"] == "ready"]
        again = [r["pid"] for r in self.said("a worker serves again") if r["worker"] == f"worker-{number}"]
        return int([*pids, *again][-1])

    def said(self, message: str) -> list[dict[str, Any]]:
        return [record for record in self.process.records if record["message"] == message]

    def admin(self) -> AdminClient:
        return AdminClient(Connection(f"unix:{self.socket}", timeout_s=PATIENCE_S, wait=True))

    def serving(self) -> str:
        with self.admin() as admin:
            [status] = admin.status()
        assert status.note == ""
        assert status.current is not None
        return status.current.version

    def ask(self, times: int) -> Counter[str]:
        """Ask over so many connections; return how many answers each version gave."""
        versions: Counter[str] = Counter()
        for _ in range(times):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                versions[stub.ModelInfer(infer_request(IMAGES), timeout=PATIENCE_S).model_version] += 1
        return versions

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples once every worker has answered, however slow it is."""
        self.becomes("/readyz", 200)
        while summed(shown := self.get("/metrics")[1], "guard_ready") != 1:
            assert self.process.popen.poll() is None
        return summed(shown, name)

    def counted(self) -> float:
        """Return how many rows all workers together say they looked at."""
        return self.metric("guard_inputs_total")

    def until_each_said(self, *messages: str) -> None:
        """Wait until both workers have said one of some messages."""
        deadline = time.monotonic() + PATIENCE_S
        while {each["worker"] for message in messages for each in self.said(message)} != WORKERS:
            assert time.monotonic() < deadline, self.process.lines
            time.sleep(0.01)


@dataclass
class Load:
    """Clients that ask again where nothing answered, and keep count of what did."""

    answered: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    stopping: bool = False

    async def ask(self, port: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            while not self.stopping:
                try:
                    answer = await stub.ModelInfer(
                        infer_request(IMAGES), timeout=PATIENCE_S, wait_for_ready=True
                    )
                    self.answered[answer.model_version] += 1
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    self.retried += 1


@asynccontextmanager
async def under_load(port: int) -> AsyncIterator[Load]:
    load = Load()
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(load.ask(port))
        yield load
        load.stopping = True


@pytest.fixture(scope="module")
def crew(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Two workers that the tests of this file share."""
    crew = Crew.of(repository, tmp_path_factory.mktemp("shared"))
    yield crew
    assert crew.process.end(signal.SIGTERM) == 0


def test_both_serve_and_what_they_count_adds_up(crew: Crew) -> None:
    before, asked = crew.counted(), 0
    flagged: set[str] = set()
    while flagged != WORKERS:  # the system spreads connections as it likes
        assert asked < 200
        asked += crew.ask(10).total()
        flagged = {record["worker"] for record in crew.said("suspicious input")}

    assert crew.counted() - before == asked
    crew.becomes("/healthz", 200)
    assert (crew.metric("guard_workers"), crew.metric("guard_ready")) == (2, 1)
    assert crew.metric("guard_model_info") == 1
    assert crew.metric("guard_queue_limit_rows") == 2 * 1024


def test_a_swap_under_load_loses_nothing_and_what_was_killed_comes_back_with_it(crew: Crew) -> None:
    async def swap_and_kill() -> Load:
        async with under_load(crew.port) as load:
            with crew.admin() as admin:
                report = await asyncio.to_thread(admin.swap, "tiny", "1" if crew.serving() == "2" else "2")
            assert report.changed
            assert load.retried == 0  # a swap costs nobody anything
            counted, killed = crew.counted(), crew.pid(2)
            os.kill(killed, signal.SIGKILL)
            back = await asyncio.to_thread(crew.process.wait_for, "a worker serves again")
            assert (back["worker"], back["pid"] != killed) == ("worker-2", True)
            assert crew.counted() >= counted
            load.answered.clear()
        return load

    load = asyncio.run(swap_and_kill())

    serving = crew.serving()
    assert crew.said("model loaded")[-1]["version"] == serving
    assert set(load.answered) <= {serving}
    assert set(crew.ask(20)) == {serving}
    assert crew.metric("guard_worker_restarts_total") >= 1


def test_a_version_that_one_worker_cannot_load_is_served_by_none(crew: Crew) -> None:
    old = crew.serving()
    new = "1" if old == "2" else "2"
    limits = resource.prlimit(crew.pid(2), resource.RLIMIT_NOFILE)
    resource.prlimit(crew.pid(2), resource.RLIMIT_NOFILE, (3, limits[1]))  # it can open no file any more
    try:
        with crew.admin() as admin, pytest.raises(OperationError, match=f"worker-2: version {new!r} "):
            admin.swap("tiny", new)
    finally:
        resource.prlimit(crew.pid(2), resource.RLIMIT_NOFILE, limits)

    assert crew.serving() == old
    assert crew.ask(10) == {old: 10}
    with crew.admin() as admin:
        assert admin.swap("tiny", new).changed
    assert crew.ask(10) == {new: 10}


def test_a_worker_that_is_stuck_holds_up_no_scrape_and_is_not_ready(crew: Crew) -> None:
    crew.ask(4)
    before = crew.counted()
    os.kill(crew.pid(1), signal.SIGSTOP)
    try:
        shown = crew.get("/metrics")[1]
        assert crew.get("/readyz") == (503, "not ok\n")
    finally:
        os.kill(crew.pid(1), signal.SIGCONT)

    assert summed(shown, "guard_inputs_total") == before
    assert summed(shown, "guard_ready") == 0
    assert crew.metric("guard_worker_scrape_failures_total") >= 1
    assert crew.metric("guard_ready") == 1


def test_a_candidate_taken_off_in_one_worker_is_taken_off_in_all(repository: Path, tmp_path: Path) -> None:
    crew = Crew.of(repository, tmp_path, canary_min_rows=20)
    try:
        with crew.admin() as admin:
            admin.swap("tiny", "1")
            assert admin.start_canary("tiny", "2", 0.5).running
            os.kill(crew.pid(2), signal.SIGKILL)
            crew.process.wait_for("a worker serves again")
            assert len(crew.said("canary started")) == 3  # what was started again tries it too
            while (status := admin.status("tiny")[0]).canary.running:  # type: ignore[union-attr]
                crew.ask(10)
            crew.until_each_said("canary rolled back", "canary stopped")

            assert status.canary.outcome.startswith("rolled back for rejections")  # type: ignore[union-attr]
            assert crew.metric("guard_canary_share_ratio") == 0
            assert crew.ask(5) == {"1": 5}
    finally:
        code = crew.process.end(signal.SIGINT)
    assert code == 0


def test_what_was_found_and_swapped_is_kept_by_one_and_audited_by_each(tmp_path: Path) -> None:
    models, audit = tmp_path / "models", tmp_path / "audit.jsonl"
    write_version(models, boundary_bits=0.0)
    kept = {"state_dir": tmp_path / "state", "watch_repository_s": 0.02, "audit_log": audit}
    crew = Crew.of(models, tmp_path, **kept)
    write_version(tmp_path / "next", boundary_bits=0.0)
    (tmp_path / "next" / "tiny" / "1").rename(models / "tiny" / "2")
    swapped = [crew.process.wait_for("model swapped") for _ in range(2)]
    with crew.admin() as admin:
        admin.rollback("tiny")
    assert crew.process.end(signal.SIGTERM) == 0

    assert {(each["worker"], each["actor"], each["new_version"]) for each in swapped} == {
        ("worker-1", "watch", "2"),
        ("worker-2", "watch", "2"),
    }
    record = json.loads((tmp_path / "state" / FILE_NAME).read_text())["models"]["tiny"]
    assert (record["current"]["version"], record["newest"]) == ("1", 2)
    for name in ("audit.jsonl", "audit.jsonl.worker-1", "audit.jsonl.worker-2"):
        verified = subprocess.run(
            [GUARD, "audit", "verify", tmp_path / name], capture_output=True, check=False
        )
        assert verified.returncode == 0, verified
    by_worker = (tmp_path / "audit.jsonl.worker-2").read_text()
    assert [kind in by_worker for kind in ('"swapped"', '"rolled_back"', '"admin_call"')] == [
        True,
        True,
        False,
    ]
    assert '"admin_call"' in audit.read_text()

    again = Crew.of(models, tmp_path, **kept)
    try:
        assert again.ask(6) == {"1": 6}
    finally:
        again.process.end(signal.SIGKILL)
    _wait_until_gone(again)


def _wait_until_gone(crew: Crew) -> None:
    """Wait until nobody listens, though the parent had no chance to say anything."""
    for pid in (crew.pid(1), crew.pid(2)):
        with suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            try:
                assert _readable(ended), f"worker {pid} outlived its parent"
            finally:
                os.close(ended)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", crew.port))


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], PATIENCE_S)[0])


def test_a_worker_that_cannot_start_stops_everything_with_its_reason(tmp_path: Path) -> None:
    write_version(tmp_path, boundary_bits=0.0)
    model = tmp_path / "tiny" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])

    process = Process.start("serve", "--repository", tmp_path, *LOCAL, "--workers", 2)
    code = process.end()

    assert code == 2
    assert [line for line in process.lines if line.startswith("error: worker-1 cannot start: ")]


def test_a_port_that_somebody_has_is_an_error_as_with_one_process(repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        process = Process.start("serve", "--repository", repository, *LOCAL, "--port", port, "--workers", 2)
        code = process.end()

    assert code == 2
    assert f"cannot listen on port {port} of 127.0.0.1" in process.lines[-1]


def test_a_swap_within_a_model_server_needs_one_process() -> None:
    process = Process.start(
        *("serve", "--repository", ".", *LOCAL, "--workers", 2),
        GUARD_MODELS__TINY__UPSTREAM="127.0.0.1:1",
        GUARD_MODELS__TINY__UPSTREAM_LOAD="swap",
    )

    assert process.end() == 2
    assert "expected workers = 1" in process.lines[-1]
