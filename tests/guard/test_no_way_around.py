"""Every way past the check that is known, tried: each is refused, and nothing reaches the model server.

One guard stands in front of one server that has the guarded model ``tiny``, the model ``words`` that is
passed through, and ``unlisted``, which the settings do not name. What a request for the guarded model cannot
smuggle in its own fields is in ``test_upstream_no_way_around.py``; what a configuration cannot open is here
at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from guard.errors import SettingsError
from guard.rpc.pb import open_inference_pb2 as pb
from tests.guard.upstream_house import (
    CLEAN,
    QUICK,
    SUSPICIOUS,
    in_front_of,
    refused,
    sent,
    tiny_repository,
    trailing,
    values,
)
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, serving, settings_for
from tests.tiny_models import linear_classifier

pytestmark = pytest.mark.asyncio(loop_scope="module")

Change = Callable[[pb.ModelInferRequest], object]
UNKNOWN_FIELD = b"\x9a\x01\x05above"


class OneForAll(ModelServer):
    """Serves its model under every name, as a server does that has them all."""

    async def _model_ready(self, message: bytes, context: Any) -> bytes:
        return pb.ModelReadyResponse(ready=self.ready).SerializeToString()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[OneForAll, Client]]:
    repository = tiny_repository(tmp_path_factory.mktemp("repository"))
    async with OneForAll(linear_classifier()) as upstream:
        models = {
            "tiny": {"upstream": upstream.address},
            "words": {"upstream": upstream.address, "guarded": False},
        }
        async with serving(repository, models=models, **QUICK) as client:
            yield upstream, client


@pytest.fixture
def upstream(house: tuple[OneForAll, Client]) -> OneForAll:
    house[0].calls.clear()
    house[0].pretends = ()
    return house[0]


@pytest.fixture
def client(house: tuple[OneForAll, Client]) -> Client:
    return house[1]


async def test_the_ways_that_are_meant_are_open(upstream: OneForAll, client: Client) -> None:
    """So that the refusals below are refusals of what they try."""
    answers = [await client.infer(sent(CLEAN[:1], model=model)) for model in ("tiny", "words")]

    assert [values(answer.parameters)["guard_verdict"] for answer in answers] == ["accept", "unguarded"]
    assert len(upstream.predictions) == 2


# Under another name


@pytest.mark.parametrize("name", ["unlisted", "", "Tiny", "tiny ", "words/../tiny", "an_ensemble_of_tiny"])
@pytest.mark.parametrize("version", ["", "1"])
async def test_a_model_that_is_not_named_in_the_settings_is_not_reached(
    upstream: OneForAll, client: Client, name: str, version: str
) -> None:
    error = await refused(client, sent(SUSPICIOUS[:1], model=name, model_version=version))

    assert (error.code(), trailing(error)) == (grpc.StatusCode.NOT_FOUND, {})
    assert upstream.predictions == []


@pytest.mark.parametrize("version", ["2", "01", "1 ", "latest", "-1"])
async def test_another_version_of_a_guarded_model_is_not_reached(
    upstream: OneForAll, client: Client, version: str
) -> None:
    error = await refused(client, sent(SUSPICIOUS[:1], model_version=version))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert upstream.predictions == []


async def test_the_last_of_two_names_decides_for_guard_and_server_alike(
    upstream: OneForAll, client: Client
) -> None:
    """A request for the neighbour that says at its end that it is for the guarded model is checked."""
    infer = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    named = pb.ModelInferRequest(model_name="tiny").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await infer(sent(SUSPICIOUS[:1], model="words").SerializeToString() + named, timeout=PATIENCE_S)
    call = await upstream.arrival()  # refused first, it may get there later: not in the next test
    await call.ended.wait()

    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


# By way of a model that is passed through


def in_shared_memory(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "theirs"
    del request.raw_input_contents[:]


def answer_in_shared_memory(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="logits").parameters["shared_memory_region"].string_param = "theirs"


def all_in_shared_memory(request: pb.ModelInferRequest) -> None:
    request.parameters["shared_memory_region"].string_param = "theirs"


def with_an_override(request: pb.ModelInferRequest) -> None:
    request.parameters["file:1/model.py"].string_param = "import os"


def with_a_verdict(request: pb.ModelInferRequest) -> None:
    request.parameters["guard_verdict"].string_param = "accept"


def with_an_unknown_field(request: pb.ModelInferRequest) -> None:
    request.MergeFromString(UNKNOWN_FIELD)


def with_an_unknown_field_inside(request: pb.ModelInferRequest) -> None:
    request.inputs[0].MergeFromString(UNKNOWN_FIELD)


def with_more_than_anybody_needs(request: pb.ModelInferRequest) -> None:
    for index in range(600):
        request.inputs.add(name=str(index))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_shared_memory, "does not read shared memory"),
        (answer_in_shared_memory, "does not read shared memory"),
        (all_in_shared_memory, "nothing is read from shared memory"),
        (with_an_override, "'file:1/model.py' is not passed on"),
        (with_a_verdict, "'guard_verdict' is not passed on"),
        (with_an_unknown_field, "fields that the guard does not know"),
        (with_an_unknown_field_inside, "fields that the guard does not know"),
        (with_more_than_anybody_needs, "inputs: expected at most 512, got 601"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_neighbour_is_no_way_to_the_servers_memory_or_its_models(
    upstream: OneForAll, client: Client, change: Change, words: str
) -> None:
    request = sent(CLEAN[:1], model="words")
    change(request)

    error = await refused(client, request)

    assert (error.code(), trailing(error)) == (grpc.StatusCode.INVALID_ARGUMENT, {})
    assert words in error.details()
    assert upstream.predictions == []


@pytest.mark.parametrize(
    ("ensembles", "ready"),
    [
        ({"words": ("tiny",)}, False),
        ({"words": ("prepare", "inner"), "inner": ("words", "tiny")}, False),
        ({"words": ("prepare", "other"), "other": ("words",)}, True),  # a circle that leads nowhere
        ({f"{n}" if n else "words": (f"{n + 1}",) for n in range(80)}, False),
    ],
    ids=["the model itself", "through another ensemble", "not at all", "too deep to see"],
)
async def test_an_ensemble_that_a_guarded_model_is_a_part_of_is_not_passed_through(
    tmp_path: Path, ensembles: dict[str, tuple[str, ...]], ready: bool
) -> None:
    async with OneForAll(linear_classifier()) as upstream:
        upstream.ensembles = ensembles
        models = {
            "tiny": {"upstream": upstream.address},
            "words": {"upstream": upstream.address, "guarded": False},
        }
        settings = {**QUICK, "upstream_wait_s": 0.2}
        async with serving(tiny_repository(tmp_path), models=models, **settings) as client:
            assert client.server._is_ready() is ready
            if ready:
                await client.infer(sent(CLEAN[:1], model="words"))
                return
            error = await refused(client, sent(SUSPICIOUS[:1], model="words"))

            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "is an ensemble of" in error.details()
            assert upstream.predictions == []

            upstream.ensembles = {}
            assert values((await client.infer(sent(CLEAN[:1]))).parameters)["guard_verdict"] == "accept"


async def test_a_model_that_becomes_an_ensemble_around_the_guarded_one_is_closed_then(tmp_path: Path) -> None:
    async with OneForAll(linear_classifier()) as upstream:
        models = {
            "tiny": {"upstream": upstream.address},
            "words": {"upstream": upstream.address, "guarded": False},
        }
        settings = {**QUICK, "upstream_wait_s": 0.2}
        async with serving(tiny_repository(tmp_path), models=models, **settings) as client:
            upstream.ensembles = {"words": ("tiny",)}
            neighbour = client.server._neighbours.models["words"]
            await neighbour.look()
            error = await refused(client, sent(SUSPICIOUS[:1], model="words"))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert upstream.predictions == []


# By another method


@pytest.mark.parametrize("model", ["tiny", "words", "unlisted"])
async def test_nobody_loads_or_unloads_a_model_or_registers_memory_from_the_data_port(
    upstream: OneForAll, client: Client, model: str
) -> None:
    override = pb.RepositoryModelLoadRequest(model_name=model)
    override.parameters["config"].string_param = "{}"
    override.parameters["file:1/model.py"].bytes_param = b"import os"
    stub, before = client.stub, dict(upstream.asked)
    refusals = [
        stub.RepositoryModelLoad(override),
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model)),
        stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest(name="theirs", key="/x")),
        stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest()),
        stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()),
        stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="theirs")),
        stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest()),
        stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()),
        stub.TraceSetting(pb.TraceSettingRequest(model_name=model)),
        stub.LogSettings(pb.LogSettingsRequest()),
    ]

    assert {await call.code() for call in refusals} == {grpc.StatusCode.UNIMPLEMENTED}
    assert {name for name in upstream.asked if name not in before} == set()


# By a false answer


@pytest.mark.parametrize("model", ["tiny", "words"])
async def test_the_server_cannot_speak_for_the_guard(upstream: OneForAll, client: Client, model: str) -> None:
    upstream.pretends = ("guard_verdict", "theirs_too", "guard_score")
    upstream.parameters = {"guard_verdict": "spoofed", "guard_p_value": "spoofed", "guard_else": "spoofed"}
    upstream.answer_metadata = ((("guard-verdict", "spoofed"),), (("guard-upstream", "spoofed"),))
    call = client.stub.ModelInfer(sent(CLEAN[:1], model=model), timeout=PATIENCE_S)
    answer = await call
    metadata = {**dict(await call.initial_metadata()), **dict(await call.trailing_metadata())}
    upstream.parameters, upstream.answer_metadata = {}, ((), ())

    assert [output.name for output in answer.outputs] == ["theirs_too", "logits"]
    assert [len(raw) for raw in answer.raw_output_contents] == [10, 40]
    assert "spoofed" not in values(answer.parameters).values()
    assert "guard-verdict" not in metadata
    assert "guard-upstream" not in metadata


async def test_a_finding_that_is_asked_for_is_the_guards(upstream: OneForAll, client: Client) -> None:
    upstream.pretends = ("guard_verdict",)
    wanted = [
        pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("logits", "guard_score")
    ]
    answer = await client.infer(sent(CLEAN[:1], outputs=wanted))

    assert [output.name for output in answer.outputs] == ["logits", "guard_score"]


# By a configuration


async def test_a_model_is_not_both_guarded_and_passed_through(tmp_path: Path) -> None:
    models = {
        "tiny": {"upstream": "127.0.0.1:8101"},
        "aside": {"upstream": "localhost:8101", "upstream_model": "tiny", "guarded": False},
    }

    with pytest.raises(
        SettingsError, match=r"models\.aside passes requests without a check to what models\.tiny"
    ):
        settings_for(tiny_repository(tmp_path), models=models)


async def test_nothing_is_passed_through_unless_it_is_said_in_so_many_words(tmp_path: Path) -> None:
    """A server behind one guarded model does not open its other models."""
    async with (
        OneForAll(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path)) as client,
    ):
        error = await refused(client, sent(CLEAN[:1], model="words"))

    assert error.details() == "model 'words' is not served here; loaded: ['tiny']"
