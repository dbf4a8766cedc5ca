"""Models beside the guarded ones: named one by one, passed through as they are, and marked as unguarded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from guard.errors import MissingFileError, SettingsError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.server import GuardServer
from tests.guard.upstream_house import (
    CLEAN,
    QUICK,
    SUSPICIOUS,
    refused,
    sent,
    tiny_repository,
    trailing,
    values,
)
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, serving, settings_for
from tests.tiny_models import linear_classifier


@asynccontextmanager
async def beside(
    upstream: ModelServer, repository: Path, *, own: dict[str, object] | None = None, **settings: object
) -> AsyncIterator[Client]:
    """Serve ``tiny`` here, and pass ``words`` through to a model server."""
    words = {"upstream": upstream.address, "guarded": False, **(own or {})}
    async with serving(repository, models={"words": words}, **{**QUICK, **settings}) as client:
        yield client


def to_words(images: np.ndarray = CLEAN[:1], **fields: object) -> pb.ModelInferRequest:
    return sent(images, **{"model": "words", **fields})


def empty(folder: Path) -> Path:
    (folder / "models").mkdir()
    return folder / "models"


async def test_a_request_goes_on_as_it_came_and_the_answer_comes_back_as_it_is(tmp_path: Path) -> None:
    request = to_words(SUSPICIOUS[:2], model_version="7")
    request.parameters["sequence_id"].int64_param = 4
    request.parameters["temperature"].double_param = 0.5
    request.inputs.add(name="mask", datatype="BOOL", shape=[3])
    request.raw_input_contents.append(b"\1\0")  # what is in it is for the server to say
    async with (
        ModelServer(linear_classifier(), name="words", version="7") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        upstream.answer_metadata = ((("first", "1"),), (("last", "2"),))
        call = client.stub.ModelInfer(request, timeout=PATIENCE_S, metadata=(("x-request-id", "9"),))
        answer = await call

        assert upstream.predictions[0].message == request.SerializeToString()
        assert upstream.predictions[0].metadata["x-request-id"] == "9"
        assert (answer.model_name, answer.model_version, answer.id) == ("words", "7", "an id")
        assert values(answer.parameters) == {"theirs": 7, "guard_verdict": "unguarded"}
        assert len(answer.raw_output_contents) == len(answer.outputs) == 1
        assert dict(await call.initial_metadata())["first"] == "1"
        assert dict(await call.trailing_metadata())["last"] == "2"
        assert client.counted("guard_unguarded_requests_total", "model") == {("words",): 1}
        assert client.infers_counted() == {("words", "OK"): 1}
        assert client.counted("guard_inputs_total") == {}


async def test_it_has_the_name_and_the_version_there_that_were_set(tmp_path: Path) -> None:
    own = {"upstream_model": "tokens", "upstream_version": "7"}
    async with (
        ModelServer(linear_classifier(), name="tokens", version="7") as upstream,
        beside(upstream, empty(tmp_path), own=own) as client,
    ):
        answer = await client.infer(to_words())
        other = await refused(client, to_words(model_version="1"))
        described = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="words"))

        asked = upstream.predictions[0].request
        assert (asked.model_name, asked.model_version) == ("tokens", "7")
        assert (answer.model_name, described.name, list(described.versions)) == ("words", "words", ["7"])
        assert other.code() is grpc.StatusCode.NOT_FOUND
        assert len(upstream.predictions) == 1


async def test_a_guard_of_neighbours_alone_has_an_empty_repository(tmp_path: Path) -> None:
    repository = empty(tmp_path)
    with pytest.raises(MissingFileError, match="holds no model"):
        await GuardServer(settings_for(repository)).start()

    async with (
        ModelServer(linear_classifier(), name="words") as upstream,
        beside(upstream, repository) as client,
    ):
        unknown = await refused(client, sent())

        assert values((await client.infer(to_words())).parameters)["guard_verdict"] == "unguarded"
        assert unknown.details() == "model 'tiny' is not served here; loaded: ['words']"


async def test_readiness_metadata_and_configuration_are_the_servers(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="words", version="7") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        ready = [
            (await client.stub.ModelReady(pb.ModelReadyRequest(name="words", version=version))).ready
            for version in ("", "7", "8")
        ]
        described = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="words", version="7"))
        config = await client.stub.ModelConfig(pb.ModelConfigRequest(name="words"))

        assert ready == [True, True, False]
        assert (described.name, described.platform, list(described.versions)) == ("words", "test", ["7"])
        assert (config.config.name, config.config.backend) == ("words", "test")
        assert config.config.parameters["kept"].string_value == "as it is"


async def test_a_server_without_configurations_gets_one_that_promises_no_batch(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="words", config=False) as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        config = (await client.stub.ModelConfig(pb.ModelConfigRequest(name="words"))).config

        assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, 3, 8, 8])


async def test_what_the_server_refuses_is_told_as_it_came(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="words") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        upstream.refusal = (grpc.StatusCode.OUT_OF_RANGE, "too long", (("why", "tokens"),))
        error = await refused(client, to_words())

        assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "too long")
        assert trailing(error) == {"why": "tokens", "guard-upstream": "true"}


async def test_readiness_follows_the_server_and_a_request_waits_for_it(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="words") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        assert client.server._is_ready()
        await upstream.kill()
        while client.server._is_ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(client.infer(to_words()))
        [guarded] = values((await client.infer(sent())).parameters)["guard_verdict"].split()
        await upstream.start()

        assert (guarded, values((await waiting).parameters)["guard_verdict"]) == ("accept", "unguarded")
        assert client.counted("guard_upstream_retries_total", "model") == {("words",): 1}
        assert client.counted("guard_upstream_ready", "model") == {("words",): 1}


async def test_an_artifact_of_a_model_that_is_passed_through_is_refused_at_the_start(tmp_path: Path) -> None:
    models = {"tiny": {"upstream": "127.0.0.1:1", "guarded": False}}
    server = GuardServer(settings_for(tiny_repository(tmp_path), models=models))

    with pytest.raises(SettingsError, match=r"model 'tiny' is to be passed through \(guarded = false\), but"):
        await server.start()


@dataclass
class Process:
    """A model server in a process of its own."""

    address: str


@asynccontextmanager
async def process(model: Path, name: str, version: str) -> AsyncIterator[Process]:
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.model_server", str(model), name, version),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert running.stdout is not None
    try:
        port = int(await asyncio.wait_for(running.stdout.readline(), 60.0))
        yield Process(f"127.0.0.1:{port}")
    finally:
        running.kill()
        await running.wait()


async def test_several_models_of_several_servers_stand_behind_one_guard(tmp_path: Path) -> None:
    """One is checked here and answered here, one checked here and answered there, one passed through."""
    repository = tiny_repository(tmp_path)
    (repository / "far").mkdir()
    (repository / "far" / "1").symlink_to(repository / "tiny" / "1")
    onnx.save(linear_classifier(), tmp_path / "model.onnx")
    async with (
        process(tmp_path / "model.onnx", "far", "5") as first,
        process(tmp_path / "model.onnx", "words", "7") as second,
        serving(
            repository,
            models={
                "far": {"upstream": first.address},
                "words": {"upstream": second.address, "guarded": False},
            },
            **QUICK,
        ) as client,
    ):
        told = {}
        for model in ("tiny", "far", "words"):
            answer = await client.infer(sent(CLEAN[:1], model=model))
            told[model] = (answer.model_version, values(answer.parameters)["guard_verdict"])
        refusals = {
            model: (await refused(client, sent(SUSPICIOUS[:1], model=model))).code().name
            for model in ("tiny", "far", "unlisted")
        }
        passed = await client.infer(sent(SUSPICIOUS[:1], model="words"))

        assert told == {"tiny": ("1", "accept"), "far": ("5", "accept"), "words": ("7", "unguarded")}
        assert refusals == {"tiny": "PERMISSION_DENIED", "far": "PERMISSION_DENIED", "unlisted": "NOT_FOUND"}
        assert values(passed.parameters)["guard_verdict"] == "unguarded"


@pytest.mark.parametrize("model", ["words", "tiny"])
async def test_the_limit_of_a_message_holds_for_what_a_model_server_answers(
    tmp_path: Path, model: str
) -> None:
    limit = 4000
    async with ModelServer(linear_classifier(), name=model) as upstream:
        own = {"upstream": upstream.address, "guarded": model == "tiny"}
        settings = {**QUICK, "max_message_bytes": limit}
        repository = tiny_repository(tmp_path)
        async with serving(repository, models={model: own}, **settings) as client:
            told = []
            for size in (limit, limit + 1):
                answer = pb.ModelInferResponse(model_name=model, model_version="1")
                answer.raw_output_contents.append(b"")
                answer.raw_output_contents[0] = bytes(size - answer.ByteSize() - 1)  # a longer length
                assert answer.ByteSize() == size
                upstream.raw = answer.SerializeToString()
                try:
                    passed = await client.infer(sent(CLEAN[:1], model=model))
                    told.append(("OK", len(passed.raw_output_contents[0])))
                except grpc.aio.AioRpcError as error:
                    told.append((error.code().name, trailing(error)))

            assert told == [
                ("OK", len(answer.raw_output_contents[0]) - 1),
                ("RESOURCE_EXHAUSTED", {"guard-upstream": "true"}),
            ]
            assert client.infers_counted() == {(model, "OK"): 1, (model, "RESOURCE_EXHAUSTED"): 1}
