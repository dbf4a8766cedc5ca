"""A candidate on a share of a real guard's requests: promoted, rolled back, operated by commands."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.e2e.guard_process import GUARD, Served
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S, Client, infer_request, serving
from tests.tiny_models import linear_classifier, nan_in_the_dark

CLIENTS = 8
IMAGES = random_images(make_profile(linear_classifier()), 16, seed=3)
IMAGES[-1] = 0.0
"""What clients send; the last one is dark."""


@dataclass
class Load:
    """Clients that ask one request after the other, and see that every answer is right."""

    versions: Counter[str] = field(default_factory=Counter)
    stopping: bool = False

    async def ask(self, port: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            while not self.stopping:
                images = IMAGES[generator.choice(len(IMAGES), generator.integers(1, 4))]
                answer = await stub.ModelInfer(infer_request(images), timeout=PATIENCE_S)
                logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(len(images), 10)
                np.testing.assert_allclose(logits, linear_logits(images), atol=1e-3)
                assert answer.parameters["guard_verdict"].string_param == "accept"
                self.versions[answer.model_version] += 1

    async def until(self, version: str, answers: int) -> None:
        """Wait until a version has given so many answers."""
        async with asyncio.timeout(PATIENCE_S):
            while self.versions[version] < answers:  # noqa: ASYNC110 - clients tell nobody
                await asyncio.sleep(0.005)


@asynccontextmanager
async def under_load(client: Client) -> AsyncIterator[Load]:
    """Ask from :data:`CLIENTS` clients for the length of a ``with`` block; what fails, fails the test."""
    load = Load()
    async with asyncio.TaskGroup() as group:
        for seed in range(CLIENTS):
            group.create_task(load.ask(client.server.port, seed))
        yield load
        load.stopping = True


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Version 1, which accepts everything."""
    write_tiny_artifact(tmp_path / "models", boundary_bits=0.0, probed=True)
    return tmp_path / "models"


async def test_a_good_candidate_is_promoted_under_load_and_no_request_fails(
    repository: Path, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    async with serving(repository, audit_log=audit, canary_max_latency_ratio=1e6) as client:
        write_tiny_artifact(repository, boundary_bits=0.0, probed=True)
        control, slot = client.server.control, client.server._keeper.models["tiny"].slot
        async with under_load(client) as load:
            await load.until("1", 20)
            await control.start_canary("tiny", "2", share=0.3)
            await load.until("2", 100)
            [status] = await control.status("tiny")
            report = await control.promote("tiny")
            await load.until("2", load.versions["2"] + 50)
        await slot.drained()
        threads = [thread.name for thread in threading.enumerate()]
        assert client.infers_counted() == {("tiny", "OK"): load.versions.total()}
        assert client.counted("guard_canary_rows_total", "finding").keys() <= {("same",)}

    assert status.canary is not None
    assert status.canary.figures["errors"] == status.canary.figures["class_disagreements"] == 0
    assert (report.old.version, report.new.version) == ("1", "2")
    assert threads.count("device-tiny") == 1
    assert [model.version for model in slot.held] == []
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [event["kind"] for event in events if event["kind"] in {"canary_started", "promoted"}] == [
        *("canary_started", "promoted"),
    ]


async def test_a_bad_candidate_is_rolled_back_under_load_and_no_client_notices(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = tmp_path / "audit.jsonl"
    async with serving(repository, audit_log=audit, canary_max_latency_ratio=1e6) as client:
        write_tiny_artifact(repository, model=nan_in_the_dark(), boundary_bits=0.0)
        with caplog.at_level(logging.ERROR, logger="guard.server"):
            async with under_load(client) as load:
                await client.server.control.start_canary("tiny", "2", share=0.3)
                async with asyncio.timeout(PATIENCE_S):
                    while (await client.server.control.status("tiny"))[0].canary.running:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                await load.until("1", load.versions["1"] + 50)
        [status] = await client.server.control.status("tiny")
        assert client.infers_counted() == {("tiny", "OK"): load.versions.total()}
        assert client.counted("guard_canaries_ended_total", "outcome") == {("errors",): 1}
        assert client.counted("guard_uncheckable_inputs_total") == {}

    assert status.canary is not None
    assert status.canary.outcome.startswith("rolled back for errors: ")
    assert [record.getMessage() for record in caplog.records] == ["canary rolled back"]
    [told] = [
        event
        for line in audit.read_text().splitlines()
        if (event := json.loads(line))["kind"] == "canary_rolled_back"
    ]
    assert (told["version"], told["outcome"], told["actor"]) == ("2", "errors", "canary")
    assert told["figures"]["errors"] == status.canary.figures["errors"] >= 2


async def test_many_canaries_leave_nothing_behind(repository: Path) -> None:
    async with serving(repository) as client:
        write_tiny_artifact(repository, boundary_bits=0.0)
        control, slot = client.server.control, client.server._keeper.models["tiny"].slot
        async with under_load(client):
            for _ in range(20):
                await control.start_canary("tiny", "2", share=0.5)
                await control.stop_canary("tiny")
        await slot.drained()
        assert [model.version for model in slot.held] == ["1"]
        assert slot.current.scheduler.rows == 0
        assert [thread.name for thread in threading.enumerate()].count("device-tiny") == 1
        assert client.counted("guard_canaries_ended_total", "outcome") == {("stopped",): 20}


@dataclass
class Operated:
    """A guard process, and the commands that operate it."""

    served: Served
    socket: Path

    def guard(self, *argv: str, code: int = 0) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
        run = subprocess.run(
            [GUARD, *argv],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**clean, "GUARD_ADMIN": f"unix:{self.socket}"},
        )
        assert run.returncode == code, run.stderr
        return run.stdout if code == 0 else run.stderr

    def versions(self, requests: int) -> Counter[str]:
        with grpc.insecure_channel(f"127.0.0.1:{self.served.port}") as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            answers: list[pb.ModelInferResponse] = [
                stub.ModelInfer(infer_request(IMAGES[:1]), timeout=PATIENCE_S) for _ in range(requests)
            ]
        return Counter(answer.model_version for answer in answers)


@pytest.mark.e2e
def test_an_operator_tries_a_version_by_commands(repository: Path, tmp_path: Path) -> None:
    socket, state = tmp_path / "admin.sock", str(tmp_path / "state")

    def start() -> Operated:
        served = Served.start(repository, "--admin-socket", str(socket), GUARD_STATE_DIR=state)
        return Operated(served, socket)

    operated = start()
    write_tiny_artifact(repository, boundary_bits=0.0)
    none_yet = operated.guard("canary", "status", "tiny", code=2)
    began = operated.guard("canary", "start", "tiny", "2", "--share", "0.25")
    versions = operated.versions(40)
    refused = operated.guard("swap", "tiny", code=2)
    status = json.loads(operated.guard("canary", "status", "tiny", "--json"))
    stopped = operated.guard("canary", "stop", "tiny")
    nothing = operated.guard("promote", "tiny", code=2)
    operated.guard("canary", "start", "tiny", "2")
    promoted = operated.guard("promote", "tiny")
    rolled_back = operated.guard("rollback", "tiny")
    operated.guard("canary", "start", "tiny", "2", "--share", "1")
    answering = operated.versions(1)
    assert operated.served.process.end(signal.SIGKILL) == -signal.SIGKILL
    again = start()
    after = again.guard("status", "tiny", "--json"), again.versions(2)
    assert again.served.process.end(signal.SIGTERM) == 0

    assert "has had no canary since the guard started; `guard canary start` starts one" in none_yet
    assert began.startswith("tiny: version 2 is tried on 0.25 of the requests since ")
    assert versions == {"1": 30, "2": 10}
    assert "`guard promote` it or `guard canary stop` it first" in refused
    assert (status["running"], status["figures"]["requests"], status["figures"]["errors"]) == (True, 10, 0)
    assert stopped.startswith("tiny: version 2 was tried on 0.25 of the requests: stopped\n")
    assert "candidate_p99_seconds" in stopped
    assert "no candidate that is tried" in nothing
    assert promoted.startswith("tiny: version 2 is served, in place of 1")
    assert rolled_back.startswith("tiny: version 1 is served, in place of 2")
    assert answering == {"2": 1}
    [known] = json.loads(after[0])
    assert (known["current"]["version"], known["canary"], after[1]) == ("1", None, {"1": 2})
