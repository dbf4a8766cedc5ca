"""NVIDIA's own client, installed into an environment of its own, against our servicer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import peers
from guard.messages import (
    InferRequest,
    InferResponse,
    ModelDescription,
    Tensor,
    TensorSpec,
)
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.rpc.servicer import InferenceServicer
from tests.guard.admin_house import TOKEN, administering, token_file
from tests.guard.fake_control import FakeControl
from tests.guard.fake_dataplane import FakeDataPlane

pytestmark = pytest.mark.peer

CALLS = Path(__file__).with_name("tritonclient_calls.py")
REPOSITORY_CALLS = Path(__file__).with_name("tritonclient_repository_calls.py")
IMAGE = TensorSpec("image", "FP32", (-1, 3, 4, 4))
ECHO = ModelDescription("echo", ("3",), "onnxruntime_onnx", "onnxruntime", 8, (IMAGE,), (IMAGE,))


class Echo(FakeDataPlane):
    """A data plane that answers every image with itself."""

    async def infer(self, request: InferRequest) -> InferResponse:
        outputs = request.inputs
        if "guard_verdict" in request.outputs:
            outputs += (Tensor("guard_verdict", "BYTES", np.array(["accept", "flag"], np.bytes_)),)
        return InferResponse("echo", "3", request.id, outputs, {"guard_verdict": "accept"})

    async def describe(self, name: str, version: str) -> ModelDescription:
        return ECHO


@pytest.fixture(scope="module")
def client_python() -> Path:
    """Return the interpreter of an environment that has tritonclient and nothing of ours."""
    return peers.environment("triton") / "bin" / "python"


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceServicer(Echo()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def call_everything(python: Path, calls: Path, *arguments: str) -> dict[str, Any]:
    """Run the client beside this process and return what it saw."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        python,
        calls,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 0, errors.decode()
    seen: dict[str, Any] = json.loads(output)
    return seen


async def test_tritonclient_reads_health_metadata_and_config_and_gets_its_arrays_back(
    client_python: Path, address: str
) -> None:
    seen = await call_everything(client_python, CALLS, address)

    assert (seen["live"], seen["ready"], seen["model_ready"], seen["unknown_ready"]) == (
        True,
        True,
        True,
        False,
    )
    assert seen["server"] == {"name": "guard", "version": "0.1.0", "extensions": ["model_configuration"]}
    assert seen["metadata"]["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": ["-1", "3", "4", "4"]}
    ]
    assert seen["config"]["max_batch_size"] == 8
    assert seen["config"]["input"][0]["dims"] == ["3", "4", "4"]
    assert seen["config"]["backend"] == "onnxruntime"
    came_back = {
        "same": True,
        "shape": [2, 3, 4, 4],
        "id": "id-7",
        "version": "3",
        "verdict": "accept",
        "rows": ["accept", "flag"],
    }
    assert seen["fp32"] == came_back | {"dtype": "float32"}
    assert seen["uint8"] == came_back | {"dtype": "uint8"}
    assert seen["fp16"] == came_back | {"dtype": "float16"}
    assert (seen["statistics"]["inference_count"], seen["statistics"]["execution_count"]) == ("12", "3")
    assert seen["statistics"]["inference_stats"]["fail"] == {"count": "1", "ns": "100"}


async def test_tritonclient_loads_versions_and_nothing_else_on_the_admin_port(
    client_python: Path, tmp_path: Path
) -> None:
    control = FakeControl()
    control.tiny = replace(control.tiny, available=("1", "2"))
    async with administering(control, port=0, token_file=token_file(tmp_path)) as house:
        seen = await call_everything(client_python, REPOSITORY_CALLS, house.address, TOKEN)

    idle = {"state": "UNAVAILABLE", "reason": "not served"}
    assert seen["without a token"][0] == "StatusCode.UNAUTHENTICATED"
    assert seen["before"] == [
        {"name": "tiny", "version": "1", "state": "READY"},
        {"name": "tiny", "version": "2", **idle},
    ]
    assert seen["load"] == ["OK", ""]
    assert seen["after"] == [
        {"name": "tiny", "version": "1", **idle},
        {"name": "tiny", "version": "2", "state": "READY"},
    ]
    for given in ("with a configuration", "with a file"):
        assert seen[given][0] == "StatusCode.INVALID_ARGUMENT"
        assert seen[given][1].startswith("parameter 'config' is not accepted: ")
    assert seen["unload"][0] == "StatusCode.UNIMPLEMENTED"
    assert [asked[:3] for asked in control.asked] == [("swap", "tiny", "")]
