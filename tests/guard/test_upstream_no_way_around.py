"""Nothing reaches the model server but what was checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from guard.errors import CandidateError
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.guard.upstream_house import (
    CLEAN,
    SUSPICIOUS,
    in_front_of,
    refused,
    sent,
    tiny_repository,
    trailing,
)
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client
from tests.tiny_models import linear_classifier

pytestmark = pytest.mark.asyncio(loop_scope="module")

Change = Callable[[pb.ModelInferRequest], object]
LOOKED_AT = {"ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer"}
"""What a guard itself asks of a server."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[ModelServer, Client]]:
    repository = tiny_repository(tmp_path_factory.mktemp("repository"))
    async with ModelServer(linear_classifier()) as upstream, in_front_of(upstream, repository) as client:
        yield upstream, client


@pytest.fixture
def upstream(house: tuple[ModelServer, Client]) -> ModelServer:
    house[0].calls.clear()
    return house[0]


@pytest.fixture
def client(house: tuple[ModelServer, Client]) -> Client:
    return house[1]


def in_shared_memory(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "theirs"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 768
    del request.raw_input_contents[:]


def answer_in_shared_memory(request: pb.ModelInferRequest) -> None:
    output = request.outputs.add(name="logits")
    output.parameters["shared_memory_region"].string_param = "theirs"


def under_another_name(request: pb.ModelInferRequest) -> None:
    request.inputs[0].name = "picture"


def beside_another(request: pb.ModelInferRequest) -> None:
    request.inputs.add(name="unseen", datatype="FP32", shape=SUSPICIOUS[:1].shape)
    request.raw_input_contents.append(SUSPICIOUS[:1].astype("<f4").tobytes())


def twice(request: pb.ModelInferRequest) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])
    request.raw_input_contents.append(SUSPICIOUS[:1].astype("<f4").tobytes())


def raw_and_typed(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend(SUSPICIOUS[:1].ravel().tolist())


def of_another_model(request: pb.ModelInferRequest) -> None:
    request.model_name = "unguarded"


def of_another_version(request: pb.ModelInferRequest) -> None:
    request.model_version = "2"


def in_a_sequence(request: pb.ModelInferRequest) -> None:
    request.parameters["sequence_id"].int64_param = 4


def with_a_verdict(request: pb.ModelInferRequest) -> None:
    request.parameters["guard_verdict"].string_param = "accept"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (in_shared_memory, "INVALID_ARGUMENT", "does not read shared memory"),
        (answer_in_shared_memory, "INVALID_ARGUMENT", "does not read shared memory"),
        (under_another_name, "INVALID_ARGUMENT", "takes exactly one input, 'images'"),
        (beside_another, "INVALID_ARGUMENT", "takes exactly one input, 'images'"),
        (twice, "INVALID_ARGUMENT", "expected each input once"),
        (raw_and_typed, "INVALID_ARGUMENT", "expected either raw_input_contents or contents"),
        (of_another_model, "NOT_FOUND", "model 'unguarded' is not served here"),
        (of_another_version, "NOT_FOUND", "version '2' of model 'tiny' is not served here; loaded: '1'"),
        (in_a_sequence, "INVALID_ARGUMENT", "'sequence_id' is not supported"),
        (with_a_verdict, "INVALID_ARGUMENT", "'guard_verdict' is set by the guard"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_request_that_is_not_what_is_checked_is_not_sent_on(
    upstream: ModelServer, client: Client, change: Change, code: str, words: str
) -> None:
    request = sent(CLEAN[:1])
    change(request)

    error = await refused(client, request)

    assert (error.code().name, trailing(error)) == (code, {})
    assert words in error.details()
    assert upstream.predictions == []


FIELD_19 = b"\x9a\x01\x05above"  # length-delimited, known to nobody


@pytest.mark.parametrize("where", ["request", "input", "contents", "output", "parameter"])
async def test_a_field_that_only_the_server_may_know_is_not_sent_on(
    upstream: ModelServer, client: Client, where: str
) -> None:
    request = sent(CLEAN[:1], outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")])
    request.parameters["priority"].int64_param = 3
    if where == "contents":
        del request.raw_input_contents[:]
        request.inputs[0].contents.fp32_contents.extend(CLEAN[:1].ravel().tolist())
    part: Any = {
        "request": request,
        "input": request.inputs[0],
        "contents": request.inputs[0].contents if where == "contents" else None,
        "output": request.outputs[0],
        "parameter": request.parameters["priority"],
    }[where]
    part.MergeFromString(FIELD_19)
    assert FIELD_19 in request.SerializeToString()

    error = await refused(client, request)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "fields that the guard does not know" in error.details()
    assert upstream.predictions == []


async def test_of_a_field_that_comes_twice_check_and_server_take_the_same(
    upstream: ModelServer, client: Client
) -> None:
    """Every parser of protobuf takes the last; so a second name cannot lead past the check."""
    infer = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    other = pb.ModelInferRequest(model_name="unguarded").SerializeToString()
    triggered = pb.ModelInferRequest(inputs=sent(SUSPICIOUS[:1]).inputs).SerializeToString()

    for message in (
        sent(CLEAN[:1]).SerializeToString() + other,
        sent(CLEAN[:1]).SerializeToString() + triggered,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await infer(message, timeout=PATIENCE_S)
        assert error.value.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
    assert upstream.predictions == []

    await infer(other + sent(CLEAN[:1]).SerializeToString(), timeout=PATIENCE_S)
    assert upstream.predictions[0].request.model_name == "tiny"


async def test_no_other_method_reaches_the_server(upstream: ModelServer, client: Client) -> None:
    override = pb.RepositoryModelLoadRequest(model_name="tiny")
    override.parameters["file:1/model.py"].bytes_param = b"import os"
    refusals = [
        client.stub.RepositoryModelLoad(override),
        client.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny")),
        client.stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest(name="theirs")),
        client.stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="theirs")),
        client.stub.TraceSetting(pb.TraceSettingRequest()),
        client.stub.LogSettings(pb.LogSettingsRequest()),
    ]
    codes = {await call.code() for call in refusals}
    unknown = await client.stub.ModelReady(pb.ModelReadyRequest(name="unguarded"))
    with pytest.raises(grpc.aio.AioRpcError) as described:
        await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="unguarded"))

    assert codes == {grpc.StatusCode.UNIMPLEMENTED}
    assert (unknown.ready, described.value.code()) == (False, grpc.StatusCode.NOT_FOUND)
    assert upstream.predictions == []
    assert set(upstream.asked) == LOOKED_AT


async def test_a_triggered_row_among_clean_ones_brings_none_of_them_an_answer(
    upstream: ModelServer, client: Client
) -> None:
    rows = np.concatenate([CLEAN[:3], SUSPICIOUS[:1]])
    errors = await asyncio.gather(*(refused(client, sent(np.roll(rows, n, axis=0))) for n in range(4)))

    assert [error.code() for error in errors] == [grpc.StatusCode.PERMISSION_DENIED] * 4
    assert [trailing(error)["guard-rows"] for error in errors] == ["3", "0", "1", "2"]


async def test_no_candidate_is_tried_on_a_model_that_a_server_answers_for(tmp_path: Path) -> None:
    repository = tiny_repository(tmp_path)
    write_tiny_artifact(repository, boundary_bits=0.0, probed=True)
    async with ModelServer(linear_classifier()) as upstream, in_front_of(upstream, repository) as client:
        with pytest.raises(CandidateError, match="model 'tiny' is answered by a model server"):
            await client.server.control.start_canary("tiny", "1", share=0.5)
