"""Requests that no gRPC client would send, against the real Envoy in front of the real Triton; no guard runs.

How each is refused is not asked here: the guarded model must not run, and neither may the other answer what
was meant for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from tests.e2e.envoy_house import GUARDED, UNGUARDED, House, house_in
from tests.e2e.raw_http2 import GRPC, exchange
from tests.guard.upstream_house import SUSPICIOUS
from tests.serving import PATIENCE_S, infer_request

pytestmark = pytest.mark.peer

PLAIN = infer_request(SUSPICIOUS[:1], model=UNGUARDED).SerializeToString()
TINY = infer_request(SUSPICIOUS[:1], model=GUARDED).SerializeToString()
SILENCE_S = 5.0


def framed(message: bytes, flag: int = 0, size: int | None = None) -> bytes:
    """Return a gRPC frame, which may lie about its flag and its length."""
    return bytes([flag]) + (len(message) if size is None else size).to_bytes(4, "big") + message


def instead(**headers: str) -> tuple[tuple[str, str], ...]:
    """Return the headers of a ModelInfer, some with another value; ``method`` stands for ``:method``."""
    names = {name.lstrip(":").replace("-", "_"): name for name, _ in GRPC}
    return tuple((name, headers.get(key, dict(GRPC)[name])) for key, name in names.items())


BODIES = {
    "the guarded model": [framed(TINY)],
    "byte by byte": [bytes([byte]) for byte in framed(TINY)],
    "the unguarded first, in one frame": [framed(PLAIN) + framed(TINY)],
    "the unguarded first, in two frames": [framed(PLAIN), framed(TINY)],
    "a length that ends before the second": [framed(PLAIN + TINY, size=len(PLAIN))],
    "a length that ends after the first": [framed(PLAIN, size=len(PLAIN + TINY)), TINY],
    "a length of nothing": [framed(PLAIN, size=0) + framed(TINY)],
    "a length beyond the end": [framed(TINY, size=len(TINY) + 1)],
    "the largest length": [framed(TINY, size=(1 << 32) - 1)],
    "an empty message first": [framed(b"") + framed(TINY)],
    "said to be compressed": [framed(TINY, flag=1)],
    "a flag that nobody knows": [framed(TINY, flag=2)],
    "the unguarded with a flag that nobody knows": [framed(PLAIN, flag=2) + framed(TINY)],
    "no frame": [TINY],
    "half a frame": [b"\0\0\0"],
    "no body": [b""],
}
HEADERS = {
    "gRPC-Web": instead(content_type="application/grpc-web+proto"),
    "gRPC of JSON": instead(content_type="application/grpc+json"),
    "JSON": instead(content_type="application/json"),
    "protobuf": instead(content_type="application/x-protobuf"),
    "no content type": tuple(pair for pair in GRPC if pair[0] != "content-type"),
    "two content types": (*GRPC, ("content-type", "application/json")),
    "GET": instead(method="GET"),
    "CONNECT": instead(method="CONNECT"),
    "two paths": (*GRPC[:3], (":path", "/inference.GRPCInferenceService/ServerLive"), *GRPC[3:]),
    "two paths, the other first": (
        *GRPC[:2],
        (":path", "/inference.GRPCInferenceService/ServerLive"),
        *GRPC[2:],
    ),
    "a host besides": (*GRPC, ("host", "model_server")),
    "an upgrade": (*GRPC, ("connection", "upgrade"), ("upgrade", "h2c")),
    "a length that lies": (*GRPC, ("content-length", "7")),
    "a transfer encoding": (*GRPC, ("transfer-encoding", "chunked")),
    "an encoding of the content": (*GRPC, ("content-encoding", "gzip")),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house_in(tmp_path_factory.mktemp("house")) as house:
        yield house


def answer_of(data: bytes) -> pb.ModelInferResponse:
    """Return the message of one gRPC frame."""
    assert len(data) > 5
    return pb.ModelInferResponse.FromString(data[5:])


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_framing_brings_the_guarded_model_to_run(house: House, body: list[bytes]) -> None:
    before = house.inferences(GUARDED)
    came = exchange(house.envoy.ports["grpc"], GRPC, body, SILENCE_S)

    assert came == b""
    assert house.inferences(GUARDED) == before


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_nor_do_headers(house: House, headers: tuple[tuple[str, str], ...]) -> None:
    before = house.inferences(GUARDED)
    came = exchange(house.envoy.ports["grpc"], headers, [framed(TINY)], SILENCE_S)

    assert b"logits" not in came
    assert house.inferences(GUARDED) == before


def test_these_bytes_are_answered_where_nothing_is_wrong_with_them(house: House) -> None:
    through = exchange(house.envoy.ports["grpc"], GRPC, [framed(PLAIN)], PATIENCE_S)
    direct = exchange(house.triton.ports["grpc"], GRPC, [framed(TINY)], PATIENCE_S)

    assert answer_of(through).model_name == UNGUARDED
    assert answer_of(direct).model_name == GUARDED
