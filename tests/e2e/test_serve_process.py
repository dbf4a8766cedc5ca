"""``guard serve`` as a process of its own: what an operator and an orchestrator see of it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.artifacts import write_tiny_artifact
from tests.e2e.guard_process import LOCAL, Process, Served
from tests.model_server import ModelServer
from tests.reference_check import images_and_boundary, linear_logits
from tests.serving import PATIENCE_S, infer_request
from tests.tiny_models import linear_classifier

pytestmark = pytest.mark.e2e

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()
IMPORT_LINE = re.compile(r"import time:.*\| +(\S+)")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One process for all who only ask it something; it tells what it imports."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_artifact(root, boundary_bits=BOUNDARY)
    served = Served.start(root, "--policy", "flag", PYTHONPROFILEIMPORTTIME="1")
    yield served
    assert served.process.end(signal.SIGINT) == 0
    assert [record["message"] for record in served.process.records][-2:] == ["stopping", "stopped"]


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield channel


def infer(channel: grpc.Channel, images: np.ndarray) -> pb.ModelInferResponse:
    return pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer_request(images), timeout=PATIENCE_S)


def test_it_answers_and_checks(served: Served, channel: grpc.Channel) -> None:
    answer = infer(channel, np.concatenate([CLEAN[:2], SUSPICIOUS[:1]]))

    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(3, 10)
    np.testing.assert_allclose(logits[:2], linear_logits(CLEAN[:2]), atol=1e-4)
    assert answer.parameters["guard_verdict"].string_param == "flag"
    assert served.process.wait_for("suspicious input")["rows"] == [2]


def test_probes_health_and_metrics_are_there(served: Served, channel: grpc.Channel) -> None:
    stub = pb_grpc.GRPCInferenceServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)

    assert (served.get("/healthz"), served.get("/readyz")) == ((200, "ok\n"), (200, "ok\n"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S).live is True
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE_S).ready is True
    assert served.metric("guard_ready") == 1
    assert served.metric("guard_boundary_bits") == pytest.approx(BOUNDARY)
    assert served.get("/nope")[0] == 404


def test_it_imports_neither_torch_nor_calibration(served: Served, channel: grpc.Channel) -> None:
    infer(channel, CLEAN[:1])
    served.get("/metrics")

    imported = {match[1] for line in served.process.lines if (match := IMPORT_LINE.fullmatch(line))}

    assert {"guard.server", "onnxruntime", "grpc", "onnx"} <= imported
    heavy = {"torch", "calibration", "scipy", "matplotlib", "PIL", "tqdm", "pandas"}
    assert {name for name in imported if name.partition(".")[0] in heavy} == set()


def test_every_line_of_its_log_is_json_with_a_time_and_a_level(served: Served) -> None:
    lines = [line for line in served.process.lines if not line.startswith("import time:")]

    records = [json.loads(line) for line in lines]

    assert [record["message"] for record in records[:2]] == ["model loaded", "ready"]
    assert all({"ts", "level", "logger", "message"} <= set(record) for record in records)


async def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    calls = 16
    write_tiny_artifact(tmp_path, boundary_bits=100.0, probed=True)
    async with ModelServer(linear_classifier()) as upstream:
        served = await asyncio.to_thread(
            Served.start,
            *(tmp_path, "--policy", "flag"),
            GUARD_MODELS__TINY__UPSTREAM=upstream.address,
            GUARD_REQUEST_TIMEOUT_S=str(PATIENCE_S),
            GUARD_DRAIN_TIMEOUT_S=str(PATIENCE_S),
        )
        upstream.open.clear()  # so that they are under way for as long as the test wants
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            request = infer_request(SUSPICIOUS[:2], id="an id")
            infer_there = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            accepted = [infer_there(request, timeout=2 * PATIENCE_S) for _ in range(calls)]
            running = asyncio.gather(*accepted)
            await upstream.arrival(calls)

            served.process.popen.send_signal(signal.SIGTERM)
            await asyncio.to_thread(served.becomes, "/readyz", 503)
            with pytest.raises(grpc.RpcError) as refused:
                await asyncio.to_thread(infer_elsewhere, served.port)
            upstream.open.set()
            answers = await running
        code = await asyncio.to_thread(served.process.end)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [answer.parameters["guard_verdict"].string_param for answer in answers] == ["flag"] * calls
    assert code == 0
    said = [record["message"] for record in served.process.records if record["level"] == "info"]
    assert (said[0], said[-3:]) == ("model loaded", ["ready", "stopping", "stopped"])


def infer_elsewhere(port: int) -> None:
    """Ask over a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer(channel, CLEAN[:1])


def test_a_guard_that_cannot_start_says_why_in_one_line_and_exits_with_2(tmp_path: Path) -> None:
    good = tmp_path / "good"
    write_tiny_artifact(good)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = {
            f"error: cannot listen on port {port} of 127.0.0.1 ": ["--repository", good, "--port", port],
            "error: setting 'port': Input should be a valid integer": ["--repository", good, "--port", "x"],
        }
        processes = [Process.start("serve", *LOCAL, *argv) for argv in started.values()]
        codes = [process.end() for process in processes]

    assert codes == [2, 2]
    for words, process in zip(started, processes, strict=True):
        [line] = [line for line in process.lines if not line.startswith("{")]
        assert line.startswith(words)
