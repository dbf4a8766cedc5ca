"""V2's repository calls on the admin port: what Triton's tools see, and what they cannot get in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.control.api import CanaryStatus, Failure
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.guard.admin_house import House, administering, refusal
from tests.guard.fake_control import version_info

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
SERVED = {"RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"}
Parameter = pb.ModelRepositoryParameter


@dataclass
class Asked:
    house: House
    stub: Any

    async def index(self, **fields: Any) -> list[tuple[str, ...]]:
        answer = await self.stub.RepositoryIndex(pb.RepositoryIndexRequest(**fields))
        return [(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]

    async def load(self, model: str = "tiny", **parameters: Parameter) -> Any:
        request = pb.RepositoryModelLoadRequest(model_name=model)
        for name, value in parameters.items():
            request.parameters[name].CopyFrom(value)
        return await self.stub.RepositoryModelLoad(request)


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    async with (
        administering(socket=tmp_path / "s") as house,
        grpc.aio.insecure_channel(house.address) as channel,
    ):
        yield Asked(house, pb_grpc.GRPCInferenceServiceStub(channel))


async def test_the_index_tells_which_version_is_served_and_why_others_are_not(asked: Asked) -> None:
    control = asked.house.control
    control.tiny = replace(
        control.tiny,
        current=version_info("2"),
        available=("1", "2", "9", "10"),
        failures=(Failure("10", 1.0, "no numbers"),),
    )

    assert await asked.index() == [
        ("tiny", "1", "UNAVAILABLE", "not served"),
        ("tiny", "2", "READY", ""),
        ("tiny", "9", "UNAVAILABLE", "not served"),
        ("tiny", "10", "UNAVAILABLE", "no numbers"),
    ]
    assert await asked.index(ready=True) == [("tiny", "2", "READY", "")]


async def test_the_index_says_so_where_it_may_not_be_what_is_there_now(asked: Asked) -> None:
    asked.house.control.tiny = replace(asked.house.control.tiny, available=("1", "2"), note="the disk hangs")

    assert await asked.index() == [
        ("tiny", "1", "READY", ""),
        ("tiny", "2", "UNAVAILABLE", "not served; the disk hangs"),
    ]


@pytest.mark.parametrize("running", [True, False])
async def test_a_canary_is_ready_while_it_runs(asked: Asked, running: bool) -> None:
    control = asked.house.control
    control.tiny = replace(control.tiny, canary=CanaryStatus(version_info("3"), 0.1, 1.0, running, "", {}))

    ready = [version for _, version, _, _ in await asked.index(ready=True)]

    assert ready == (["1", "3"] if running else ["1"])


async def test_a_served_version_whose_directory_is_gone_is_listed(asked: Asked) -> None:
    asked.house.control.tiny = replace(asked.house.control.tiny, available=("2",))

    assert await asked.index() == [("tiny", "1", "READY", ""), ("tiny", "2", "UNAVAILABLE", "not served")]


async def test_a_model_that_is_being_unloaded_has_nothing_ready(asked: Asked) -> None:
    asked.house.control.tiny = replace(asked.house.control.tiny, current=None)

    assert await asked.index(ready=True) == []


async def test_load_swaps_to_the_highest_version_or_to_the_one_named(asked: Asked) -> None:
    await asked.load(version=Parameter(string_param="2"))
    await asked.load(version=Parameter(int64_param=1))
    asked.house.control.tiny = replace(asked.house.control.tiny, available=("1", "2"))
    await asked.load()

    assert asked.house.control.asked == [("swap", "tiny", version, "", "unix") for version in ("2", "1", "")]
    assert asked.house.reported == [("RepositoryModelLoad", "tiny", "OK")] * 3
    assert await asked.index(ready=True) == [("tiny", "2", "READY", "")]


async def test_a_candidate_that_is_unfit_is_told_to_triton_too(asked: Asked) -> None:
    assert await refusal(asked.load()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "version '3' of model 'tiny' gives no numbers; '1' serves on",
    )
    assert ("tiny", "3", "UNAVAILABLE", "the model gives no numbers") in await asked.index()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"config": Parameter(string_param="{}")},
            "parameter 'config' is not accepted: a model is loaded as ",
        ),
        (
            {"file:1/model.onnx": Parameter(bytes_param=b"\x08\x0a" * 1000)},
            "parameter 'file:1/model.onnx' is not accepted: a model is loaded as it lies in the repository, "
            "with its hashes and calibration; put a new version there, or leave the parameter out",
        ),
        ({"speed": Parameter(int64_param=1)}, "parameter 'speed' is not accepted: "),
        (
            {"version": Parameter(bool_param=True)},
            "parameter 'version': expected string_param or int64_param, got bool_param",
        ),
        ({"version": Parameter()}, "parameter 'version': expected string_param or int64_param, got no value"),
        ({"version": Parameter(string_param="../2")}, "version '../2': expected the number of a version "),
        ({"version": Parameter(int64_param=-1)}, "version '-1': expected the number of a version directory"),
    ],
)
async def test_nothing_is_loaded_beside_the_artifact(
    asked: Asked, parameters: dict[str, Parameter], words: str
) -> None:
    code, told = await refusal(asked.load(**parameters))

    assert (code, told[: len(words)]) == (INVALID, words)
    assert asked.house.control.asked == []


async def test_what_was_tried_is_recorded(asked: Asked) -> None:
    await asked.load(version=Parameter(string_param="2"))
    await refusal(asked.load(**{"file:1/model.onnx": Parameter(bytes_param=b"x"), "config": Parameter()}))

    fields = {"method": "RepositoryModelLoad", "model": "tiny", "actor": "unix"}
    assert asked.house.events == [
        ("admin_call", {**fields, "code": "OK", "parameters": "version"}),
        ("admin_call", {**fields, "code": "INVALID_ARGUMENT", "parameters": "config, file:1/model.onnx"}),
    ]


async def test_an_unknown_model_is_not_found(asked: Asked) -> None:
    assert (await refusal(asked.load("nope")))[0] is grpc.StatusCode.NOT_FOUND


async def test_another_repository_is_refused(asked: Asked) -> None:
    words = "repository_name 'attic': a guard has one repository; leave the field empty"
    assert await refusal(asked.index(repository_name="attic")) == (INVALID, words)
    request = pb.RepositoryModelLoadRequest(repository_name="attic", model_name="tiny")
    assert await refusal(asked.stub.RepositoryModelLoad(request)) == (INVALID, words)
    assert asked.house.control.asked == []


async def test_unload_is_refused_with_the_reason(asked: Asked) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name="tiny")

    code, words = await refusal(asked.stub.RepositoryModelUnload(request))

    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert words.startswith("RepositoryModelUnload is not served: a guard serves every model ")
    assert "`guard rollback`" in words


@pytest.mark.parametrize("name", sorted({method.name for method in SERVICE.methods} - SERVED))
async def test_no_other_call_of_the_protocol_is_on_the_admin_port(asked: Asked, name: str) -> None:
    method = SERVICE.methods_by_name[name]
    request = getattr(pb, method.input_type.name)()
    call = getattr(asked.stub, name)
    if name == "ModelStreamInfer":
        code, words = await refusal(call(iter([request])).read())
    else:
        code, words = await refusal(call(request))

    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "this is the admin port" in words
