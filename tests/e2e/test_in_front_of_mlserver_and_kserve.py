"""The real MLServer and KServe behind the guard: no configuration, names of inputs that they ignore."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

import peers
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.e2e.kserve_process import KServe
from tests.e2e.mlserver_process import MLServer
from tests.e2e.peer_process import PeerProcess
from tests.guard.upstream_house import (
    CLEAN,
    SUSPICIOUS,
    in_front_of,
    refused,
    sent,
    tiny_repository,
    trailing,
    values,
)
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S
from tests.tiny_models import linear_classifier

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

KSERVE_CALLS = Path(__file__).with_name("kserve_client_calls.py")
CALLS_S = 60.0
MODES = pytest.mark.parametrize("check", ["local", "upstream"])


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["mlserver", "kserve"])
async def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PeerProcess]:
    folder = tmp_path_factory.mktemp(request.param)
    kind = {"mlserver": MLServer, "kserve": KServe}[request.param]
    server = kind(await asyncio.to_thread(peers.environment, request.param), folder)
    server.write("signs", linear_classifier())
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


def typed() -> pb.ModelInferRequest:
    request = sent(CLEAN[:2])
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(CLEAN[:2].ravel().tolist())
    for name in ("logits", "guard_verdict"):
        request.outputs.add(name=name)
    return request


def misnamed() -> pb.ModelInferRequest:
    request = sent(SUSPICIOUS[:1])
    request.inputs[0].name = "picture"
    return request


@MODES
async def test_the_server_answers_and_the_guard_checks(
    server: PeerProcess, tmp_path: Path, check: str
) -> None:
    own = {"upstream_model": "signs", "upstream_check": check}
    async with in_front_of(server, tiny_repository(tmp_path), own=own) as client:
        raw = await client.infer(sent(CLEAN[:2]))
        in_fields = await client.infer(typed())
        rejected = await refused(client, sent(SUSPICIOUS[:1]))
        wrong = await refused(client, misnamed())
        metadata = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        config = (await client.stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config

    assert (values(raw.parameters)["guard_verdict"], raw.id, raw.model_name) == ("accept", "an id", "tiny")
    logits = np.frombuffer(raw.raw_output_contents[0], "<f4").reshape(2, 10)
    np.testing.assert_allclose(logits, linear_logits(CLEAN[:2]), atol=1e-4)
    assert [output.name for output in in_fields.outputs] == ["logits", "guard_verdict"]
    if in_fields.raw_output_contents:  # KServe answers raw, whatever it is asked
        assert in_fields.raw_output_contents[1] == b"\x06\x00\x00\x00accept" * 2
    else:
        fields = np.array(in_fields.outputs[0].contents.fp32_contents).reshape(2, 10)
        np.testing.assert_allclose(fields, linear_logits(CLEAN[:2]), atol=1e-4)
        assert list(in_fields.outputs[1].contents.bytes_contents) == [b"accept"] * 2
    assert rejected.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (wrong.code(), trailing(wrong)) == (grpc.StatusCode.INVALID_ARGUMENT, {})
    assert (metadata.name, metadata.inputs[0].name) == ("tiny", "images")
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [3, 8, 8])


async def test_an_input_name_that_the_server_ignores_would_have_gone_past_a_check_by_name(
    server: PeerProcess,
) -> None:
    request = misnamed()
    request.model_name = "signs"
    async with grpc.aio.insecure_channel(server.address) as channel:
        answer = await pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE_S)

    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(1, 10)
    np.testing.assert_allclose(logits, linear_logits(SUSPICIOUS[:1]), atol=1e-4)


async def test_the_client_of_kserve_takes_the_guard_for_a_server(server: PeerProcess, tmp_path: Path) -> None:
    home = await asyncio.to_thread(peers.environment, "kserve")
    np.savez(tmp_path / "images.npz", clean=CLEAN, suspicious=SUSPICIOUS)
    repository = tiny_repository(tmp_path / "repository")
    async with in_front_of(server, repository, own={"upstream_model": "signs"}) as client:
        address = f"127.0.0.1:{client.server.port}"
        process = await asyncio.create_subprocess_exec(
            *(home / "bin" / "python", KSERVE_CALLS, address, "tiny", tmp_path / "images.npz"),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(CALLS_S):
            said, _ = await process.communicate()
    seen = json.loads(said)

    assert seen["ready"] == [True, True, True]
    for how in ("raw", "typed"):
        assert (seen[how]["id"], seen[how]["verdict"]) == ("id-7", "accept")
        np.testing.assert_allclose(seen[how]["logits"], linear_logits(CLEAN[:2]), atol=1e-4)
    assert seen["suspicious"]["status"] == "PERMISSION_DENIED"
    assert "row 0" in seen["suspicious"]["words"]
