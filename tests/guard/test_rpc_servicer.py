"""The inference service behind a real gRPC server: every rpc, every way a call can end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from fake_dataplane import FakeDataPlane
from google.protobuf import message_factory

from guard import errors
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.rpc.servicer import DataPlane, InferenceServicer
from guard.rpc.status import STATUS_OF
from tests.serving import PATIENCE_S

LIMIT_BYTES = 64 * 1024
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVED = {
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelStatistics",
    "RepositoryIndex",
}
REFUSED = {
    "RepositoryModelLoad": "on the admin port (setting admin_port)",
    "RepositoryModelUnload": "on the admin port (setting admin_port)",
    "SystemSharedMemoryStatus": "go around the guard",
    "SystemSharedMemoryRegister": "go around the guard",
    "SystemSharedMemoryUnregister": "go around the guard",
    "CudaSharedMemoryStatus": "go around the guard",
    "CudaSharedMemoryRegister": "go around the guard",
    "CudaSharedMemoryUnregister": "go around the guard",
    "TraceSetting": "operator's",
    "LogSettings": "operator's",
}
RAISED = [cls for cls in STATUS_OF if cls is not errors.InputRejectedError]


@dataclass
class House:
    """A running server, a stub that calls it, and what was reported of its calls."""

    plane: FakeDataPlane
    stub: Any
    reported: asyncio.Queue[tuple[str, str, str]] = field(default_factory=asyncio.Queue)

    def report(self, method: str, model: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.reported.put_nowait((method, model, code))

    async def only_report(self) -> tuple[str, str, str]:
        """Return the one call reported, when it is there."""
        first = await asyncio.wait_for(self.reported.get(), timeout=PATIENCE_S)
        assert self.reported.empty()
        return first


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House(FakeDataPlane(), None)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT_BYTES)])
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(house.plane, on_rpc=house.report), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), timeout=PATIENCE_S)
        house.stub = pb_grpc.GRPCInferenceServiceStub(channel)
        yield house
    await server.stop(None)


def echo(model: str = "echo", rows: int = 2) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id="id-7")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(np.arange(rows * 4, dtype=np.float32).tobytes())
    return request


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


def test_the_fake_is_a_data_plane() -> None:
    assert isinstance(FakeDataPlane(), DataPlane)


def test_every_rpc_of_the_protocol_is_either_served_or_refused_here() -> None:
    assert {method.name for method in SERVICE.methods} == SERVED | set(REFUSED)


async def test_server_is_live_and_ready(house: House) -> None:
    assert (await house.stub.ServerLive(pb.ServerLiveRequest())).live is True
    assert (await house.stub.ServerReady(pb.ServerReadyRequest())).ready is True


@pytest.mark.parametrize(
    ("name", "version", "ready"), [("echo", "", True), ("echo", "9", False), ("nope", "", False)]
)
async def test_an_unknown_model_is_not_ready_and_that_is_no_error(
    house: House, name: str, version: str, ready: bool
) -> None:
    answer = await house.stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))

    assert answer.ready is ready
    assert await house.only_report() == ("ModelReady", "", "OK")


async def test_server_and_model_describe_themselves(house: House) -> None:
    server = await house.stub.ServerMetadata(pb.ServerMetadataRequest())
    model = await house.stub.ModelMetadata(pb.ModelMetadataRequest(name="echo"))
    config = (await house.stub.ModelConfig(pb.ModelConfigRequest(name="echo"))).config

    assert (server.name, list(server.extensions)) == ("guard", ["model_configuration"])
    assert list(model.inputs[0].shape) == [-1, 4]
    assert (config.max_batch_size, list(config.input[0].dims)) == (8, [4])


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
async def test_an_unknown_model_cannot_be_described(house: House, method: str) -> None:
    request = pb.ModelMetadataRequest(name="nope")
    if method == "ModelConfig":
        request = pb.ModelConfigRequest(name="nope")

    error = await refusal(getattr(house.stub, method)(request))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "model 'nope' is not in the repository; loaded: ['echo']"
    assert await house.only_report() == (method, "", "NOT_FOUND")


async def test_an_inference_comes_back_with_id_parameters_and_raw_outputs(house: House) -> None:
    answer = await house.stub.ModelInfer(echo(), timeout=PATIENCE_S)

    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "3", "id-7")
    assert answer.raw_output_contents[0] == np.arange(8, dtype=np.float32).tobytes()
    assert list(answer.outputs[0].shape) == [2, 4]
    assert answer.parameters["guard_verdict"].string_param == "accept"
    assert answer.parameters["guard_passes"].int64_param == 4
    assert await house.only_report() == ("ModelInfer", "echo", "OK")


async def test_the_callers_deadline_reaches_the_data_plane(house: House) -> None:
    await house.stub.ModelInfer(echo(), timeout=500)
    await house.stub.ModelInfer(echo())

    with_deadline, without = (request.timeout_s for request in house.plane.requests)
    assert with_deadline is not None
    assert 400 < with_deadline <= 501
    assert without is None


async def test_a_malformed_request_never_reaches_the_data_plane(house: House) -> None:
    request = echo()
    request.raw_input_contents[0] = b"short"

    error = await refusal(house.stub.ModelInfer(request))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "input 'x': expected 32 bytes for FP32 [2, 4], got 5 bytes"
    assert house.plane.requests == []
    assert await house.only_report() == ("ModelInfer", "echo", "INVALID_ARGUMENT")


@pytest.mark.parametrize("cls", RAISED, ids=lambda cls: cls.__name__)
async def test_an_error_of_the_guard_arrives_with_its_status_and_its_words(
    house: House, cls: type[errors.GuardError]
) -> None:
    house.plane.error = cls(f"words of {cls.__name__}")

    error = await refusal(house.stub.ModelInfer(echo()))

    assert error.code() is STATUS_OF[cls]
    assert error.details() == f"words of {cls.__name__}"
    assert await house.only_report() == ("ModelInfer", "echo", STATUS_OF[cls].name)


async def test_a_rejected_input_arrives_with_its_rows_and_scores(house: House) -> None:
    house.plane.error = errors.InputRejectedError(
        "rows 0, 3 carry a trigger", rows=(0, 3), scores=(-0.1, -0.25)
    )

    error = await refusal(house.stub.ModelInfer(echo()))

    assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "rows 0, 3 carry a trigger")
    metadata = dict(error.trailing_metadata())
    assert metadata["guard-verdict"] == "reject"
    assert metadata["guard-rows"] == "0,3"
    assert metadata["guard-scores"] == "-0.1,-0.25"
    assert await house.only_report() == ("ModelInfer", "echo", "PERMISSION_DENIED")


async def test_a_defect_arrives_as_an_id_and_stands_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.plane.error = KeyError("secret")

    error = await refusal(house.stub.ModelInfer(echo()))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert (found := re.fullmatch("unexpected error, see server log ([0-9a-f]{12})", error.details()))
    assert found[1] in caplog.text
    assert "KeyError: 'secret'" in caplog.text
    assert await house.only_report() == ("ModelInfer", "echo", "INTERNAL")


async def test_a_model_that_callers_made_up_does_not_become_a_label(house: House) -> None:
    house.plane.error = errors.UnknownModelError("model 'made-up-4711' is not in the repository")

    await refusal(house.stub.ModelInfer(echo("made-up-4711")))

    assert await house.only_report() == ("ModelInfer", "", "NOT_FOUND")


@pytest.mark.parametrize("name", REFUSED)
async def test_an_rpc_that_is_not_guarded_is_refused_with_its_name_and_the_reason(
    house: House, name: str
) -> None:
    request = message_factory.GetMessageClass(SERVICE.methods_by_name[name].input_type)()
    error = await refusal(getattr(house.stub, name)(request))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details().startswith(f"{name} is not served: ")
    assert REFUSED[name] in error.details()
    assert await house.only_report() == (name, "", "UNIMPLEMENTED")


async def test_a_message_over_the_limit_is_refused_and_the_server_lives_on(house: House) -> None:
    error = await refusal(house.stub.ModelInfer(echo(rows=LIMIT_BYTES // 16 + 1)))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert house.plane.requests == []
    assert (await house.stub.ServerLive(pb.ServerLiveRequest())).live is True


async def test_a_caller_whose_time_is_up_ends_the_work_and_is_counted_so(house: House) -> None:
    house.plane.hold = True

    error = await refusal(house.stub.ModelInfer(echo(), timeout=2.0))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(house.plane.cancelled.wait(), timeout=PATIENCE_S)
    assert await house.only_report() == ("ModelInfer", "echo", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("timeout_s", [None, 60])
async def test_a_caller_who_hangs_up_ends_the_work_and_is_counted_so(
    house: House, timeout_s: float | None
) -> None:
    house.plane.hold = True
    call = house.stub.ModelInfer(echo(), timeout=timeout_s)
    await asyncio.wait_for(house.plane.started.wait(), timeout=PATIENCE_S)

    assert call.cancel() is True

    await asyncio.wait_for(house.plane.cancelled.wait(), timeout=PATIENCE_S)
    assert await house.only_report() == ("ModelInfer", "echo", "CANCELLED")


async def test_calls_made_at_once_are_answered_and_counted_each_by_itself(house: House) -> None:
    answers = await asyncio.gather(*(house.stub.ModelInfer(echo(rows=rows)) for rows in range(1, 21)))

    assert [answer.outputs[0].shape[0] for answer in answers] == list(range(1, 21))
    assert house.reported.qsize() == 20
