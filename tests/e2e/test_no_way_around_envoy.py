"""What is tried to get a guarded model's answer past the guards: the real Envoy in front of the real Triton.

No guard runs here. So whatever names the guarded model has to fail, and Triton's own count of the guarded
model's inferences must stay where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from tests.e2e.envoy_house import GUARDED, UNGUARDED, House, house_in, stub_of
from tests.guard.upstream_house import SUSPICIOUS
from tests.serving import PATIENCE_S, infer_request

pytestmark = pytest.mark.peer

SERVICE = "/inference.GRPCInferenceService/"
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

MOST = 64 * 1024 * 1024
REST = infer_request(SUSPICIOUS[:1], model="").SerializeToString()
"""A request that names no model; records may be put before and behind it."""


def named(model: str, tag: bytes = b"\x0a") -> bytes:
    """Return the record that names the model."""
    return tag + bytes([len(model)]) + model.encode()


def request_of(*parts: bytes) -> bytes:
    return b"".join(parts)


PLAIN, TINY = named(UNGUARDED), named(GUARDED)

TRITON_RUNS_THE_GUARDED = {
    "named as it is": TINY + REST,
    "two names": PLAIN + REST + TINY,
    "two names in front": PLAIN + TINY + REST,
    "a tag in two bytes": PLAIN + REST + named(GUARDED, b"\x8a\x00"),
    "a tag in five bytes": PLAIN + REST + named(GUARDED, b"\x8a\x80\x80\x80\x00"),
    "a length in two bytes": PLAIN + REST + b"\x0a\x84\x00" + GUARDED.encode(),
    "a length in five bytes": PLAIN + REST + b"\x0a\x84\x80\x80\x80\x00" + GUARDED.encode(),
    "behind more records than are read": PLAIN + REST + b"\x1a\x00" * 5000 + TINY,
    "behind a field that nobody knows": PLAIN + REST + b"\x42\x01x" + TINY,
    "behind a field with a high number": PLAIN + REST + b"\xfa\xff\xff\xff\x0f\x01x" + TINY,
    "behind a number": PLAIN + REST + b"\x40\x01" + TINY,
    "behind a group": PLAIN + REST + b"\x4b\x4c" + TINY,
    "behind eight bytes": PLAIN + REST + b"\x41" + bytes(8) + TINY,
    "behind a name that is a number": PLAIN + REST + b"\x08\x01" + TINY,
    "an empty name first": b"\x0a\x00" + REST + TINY,
}
"""Triton reads these as requests for the guarded model."""

OTHERS = {
    "two names, the guarded first": TINY + REST + PLAIN,
    "no name": REST,
    "a name with a zero behind it": named(UNGUARDED + "\0") + REST,
    "a name with a space": named(UNGUARDED + " ") + REST,
    "a name in capitals": named(UNGUARDED.upper()) + REST,
    "a name that is too long": b"\x0a\x81\x02" + b"p" * 257 + REST,
    "a length beyond the end": PLAIN + REST + b"\x0a\x7f" + GUARDED.encode(),
    "a length that wraps around": PLAIN + REST + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + TINY,
    "a tag whose high bits are cut off": PLAIN + REST + named(GUARDED, b"\x8a\x80\x80\x80\x10"),
    "an end in the middle of a tag": PLAIN + REST + b"\x8a",
    "no message of any kind": b"\xff" * 64,
    "nothing": b"",
}
"""Triton reads these as no request, or as one for another model: refused here all the same."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house_in(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture
def envoy(house: House) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(house.envoy.address) as channel:
        yield channel


@pytest.fixture(autouse=True)
def the_guarded_model_does_not_run(request: pytest.FixtureRequest, house: House) -> Iterator[None]:
    before = house.inferences(GUARDED)
    yield
    if "message" not in request.fixturenames:  # which ask Triton itself, too
        assert house.inferences(GUARDED) == before


def outcome(channel: grpc.Channel, *messages: bytes, method: str = "ModelInfer", **options: Any) -> Any:
    """Send messages as they are; return the answer, or the status."""
    path = method if method.startswith("/") else SERVICE + method
    options = {"timeout": PATIENCE_S, **options}
    try:
        if len(messages) == 1:
            return channel.unary_unary(path)(messages[0], **options)
        return channel.stream_unary(path)(iter(messages), **options)
    except grpc.RpcError as error:
        return error.code()


@pytest.mark.parametrize("message", TRITON_RUNS_THE_GUARDED.values(), ids=TRITON_RUNS_THE_GUARDED)
def test_what_triton_takes_for_the_guarded_model_does_not_reach_it(
    house: House, envoy: grpc.Channel, message: bytes
) -> None:
    with grpc.insecure_channel(house.triton.address) as direct:
        reached = outcome(direct, message)
    before = house.inferences(GUARDED)

    assert outcome(envoy, message) is UNAVAILABLE
    assert house.inferences(GUARDED) == before
    assert pb.ModelInferResponse.FromString(reached).model_name == GUARDED


@pytest.mark.parametrize("message", OTHERS.values(), ids=OTHERS)
def test_what_is_not_surely_the_unguarded_model_does_not_reach_triton_either(
    house: House, envoy: grpc.Channel, message: bytes
) -> None:
    before = house.inferences(UNGUARDED)

    assert outcome(envoy, message) is UNAVAILABLE
    assert house.inferences(UNGUARDED) == before


def test_the_unguarded_model_is_answered_meanwhile(envoy: grpc.Channel) -> None:
    answer = outcome(envoy, PLAIN + REST)
    name_last = outcome(envoy, REST + PLAIN)

    assert pb.ModelInferResponse.FromString(answer).model_name == UNGUARDED
    assert pb.ModelInferResponse.FromString(name_last).model_name == UNGUARDED


def test_a_message_that_is_compressed_is_not_read(envoy: grpc.Channel) -> None:
    blank = infer_request(np.zeros((1, 3, 8, 8)), model="").SerializeToString()  # gRPC sends it smaller
    for message in (PLAIN + blank + TINY, TINY + blank, PLAIN + blank):
        assert outcome(envoy, message, compression=grpc.Compression.Gzip) is UNAVAILABLE


def test_of_several_messages_in_one_call_none_is_read(envoy: grpc.Channel) -> None:
    assert outcome(envoy, PLAIN + REST, TINY + REST) is UNAVAILABLE
    assert outcome(envoy, TINY + REST, PLAIN + REST) is UNAVAILABLE
    assert outcome(envoy) is UNAVAILABLE


def test_a_stream_goes_to_the_guards_whatever_it_names_first(envoy: grpc.Channel) -> None:
    stream = envoy.stream_stream(SERVICE + "ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as refused:
        list(stream(iter([PLAIN + REST, TINY + REST]), timeout=PATIENCE_S))
    assert refused.value.code() is UNAVAILABLE


@pytest.mark.parametrize(
    "metadata",
    [
        {"x-guard-model": UNGUARDED},
        {"guard": UNGUARDED, "model": UNGUARDED},
        {"x-envoy-original-path": SERVICE + "ModelMetadata"},
        {"x-envoy-decorator-operation": "unguarded"},
        {"x-original-url": SERVICE + "ServerLive", "x-rewrite-url": SERVICE + "ServerLive"},
        {"x-http-method-override": "GET"},
        {"x-envoy-retry-on": "5xx,unavailable", "x-envoy-max-retries": "5"},
        {"content-length": "0"},
        {"grpc-encoding": "gzip"},
    ],
    ids=lambda metadata: next(iter(metadata)),
)
def test_no_header_of_a_client_decides_where_a_request_goes(
    envoy: grpc.Channel, metadata: dict[str, str]
) -> None:
    assert not isinstance(outcome(envoy, TINY + REST, metadata=tuple(metadata.items())), bytes)


@pytest.mark.parametrize("authority", ["model_server", "127.0.0.1:8101", "admin"])
def test_nor_does_the_authority(house: House, envoy: grpc.Channel, authority: str) -> None:
    options = [("grpc.default_authority", authority)]
    with grpc.insecure_channel(house.envoy.address, options=options) as channel:
        assert outcome(channel, TINY + REST) is UNAVAILABLE


@pytest.mark.parametrize(
    "path",
    [
        "/" + SERVICE + "ModelInfer",
        SERVICE + "/ModelInfer",
        SERVICE + "ModelInfer/",
        SERVICE + "ModelInfer%00",
        SERVICE + "%4dodelInfer",
        SERVICE + "modelinfer",
        SERVICE + "ServerLive/../ModelInfer",
        SERVICE + "ServerLive/..%2fModelInfer",
        SERVICE + "ServerLive/%2e%2e/ModelInfer",
        SERVICE + "ModelInfer?model=plain",
        SERVICE + "ModelInfer#ServerLive",
        SERVICE + "ServerLive;/ModelInfer",
        "/v2/models/tiny/infer",
        "/",
    ],
)
def test_a_path_that_is_written_otherwise_leads_to_the_guards_or_nowhere(
    envoy: grpc.Channel, path: str
) -> None:
    assert not isinstance(outcome(envoy, TINY + REST, method=path), bytes)


@pytest.mark.parametrize(
    "method",
    [
        *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings", "NotYetKnown"),
        *(
            f"{kind}SharedMemory{verb}"
            for kind in ("System", "Cuda")
            for verb in ("Register", "Unregister", "Status")
        ),
        "/inference.AnotherService/ModelInfer",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_what_controls_the_server_ends_at_envoy(envoy: grpc.Channel, method: str) -> None:
    assert outcome(envoy, b"", method=method) is PERMISSION_DENIED
    assert outcome(envoy, b"\x0a\x04tiny", method=method) is PERMISSION_DENIED


def test_a_region_of_shared_memory_cannot_be_named_for_there_is_none(envoy: grpc.Channel) -> None:
    request = pb.ModelInferRequest(model_name=UNGUARDED)
    images = request.inputs.add(name="images", datatype="FP32", shape=[1, 3, 8, 8])
    images.parameters["shared_memory_region"].string_param = "theirs"
    images.parameters["shared_memory_byte_size"].int64_param = 768

    assert outcome(envoy, request.SerializeToString()) is grpc.StatusCode.NOT_FOUND


def test_what_only_looks_goes_through_without_a_guard(envoy: grpc.Channel) -> None:
    stub = stub_of(envoy)

    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S).live is True
    assert stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=PATIENCE_S).name == "triton"
    listed = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=PATIENCE_S).models
    assert {model.name for model in listed} == {GUARDED, UNGUARDED}
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady"):
        assert isinstance(outcome(envoy, b"\x0a\x05plain", method=method), bytes)
        assert outcome(envoy, b"\x0a\x04tiny", method=method) is UNAVAILABLE
    assert isinstance(outcome(envoy, b"", method="/grpc.health.v1.Health/Check"), bytes)


def test_a_large_message_goes_through_and_one_over_the_limit_is_refused(house: House) -> None:
    options = [("grpc.max_receive_message_length", -1)]  # the id comes back
    with grpc.insecure_channel(house.envoy.address, options=options) as channel:
        assert isinstance(outcome(channel, PLAIN + REST + an_id(8 * 1024 * 1024)), bytes)
        over = outcome(channel, PLAIN + REST + an_id(MOST))

    assert over is grpc.StatusCode.UNKNOWN  # Envoy's word for 413


def an_id(size: int) -> bytes:
    """Return the record of an id of so many bytes, 2 to 128 MiB."""
    length = [size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21]
    return b"\x1a" + bytes(length) + b"x" * size
