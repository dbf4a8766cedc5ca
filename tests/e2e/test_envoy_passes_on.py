"""What of a request reaches a guard behind the real Envoy, and who takes whom for whom."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc as health_grpc
from grpc_health.v1.health import HealthServicer

import peers
from tests.e2e.envoy_process import Envoy
from tests.guard.admin_house import Authority, make_authority
from tests.serving import PATIENCE_S

pytestmark = pytest.mark.peer

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
MESSAGE = b"\x0a\x04tiny\x1a\x02id"
WHO = "x-guard-client"
MIB = 1024 * 1024
HEALTHY = health.HealthCheckResponse.SERVING


@dataclass
class Listener(grpc.GenericRpcHandler):
    """Takes every message that reaches a guard's port, answers with the same, and notes what came with it."""

    came: list[list[tuple[str, str | bytes]]] = field(default_factory=list)
    left_s: list[float | None] = field(default_factory=list)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if not handler_call_details.method.startswith("/inference."):
            return None
        return grpc.stream_stream_rpc_method_handler(self.answer)

    def told(self, *names: str) -> list[list[tuple[str, str | bytes]]]:
        """Return what each call said under some names."""
        return [[(name, value) for name, value in metadata if name in names] for metadata in self.came]

    def answer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.came.append([(name, value) for name, value in context.invocation_metadata()])
        self.left_s.append(context.time_remaining())
        context.set_trailing_metadata((("guard-told", "in the end"),))
        yield from messages


@contextmanager
def listening(port: int, credentials: grpc.ServerCredentials | None = None) -> Iterator[Listener]:
    """Listen where Envoy looks for a guard."""
    listener = Listener()
    server = grpc.server(ThreadPoolExecutor(4), handlers=(listener,))
    said = HealthServicer()
    said.set("", HEALTHY)
    health_grpc.add_HealthServicer_to_server(said, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    server.start()
    try:
        yield listener
    finally:
        server.stop(None).wait()


@contextmanager
def running(envoy: Envoy) -> Iterator[Envoy]:
    envoy.start()
    try:
        yield envoy
    finally:
        envoy.kill()


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with running(Envoy(peers.environment("envoy"), tmp_path_factory.mktemp("envoy"))) as envoy:
        yield envoy


@pytest.fixture
def guard(envoy: Envoy) -> Iterator[Listener]:
    with listening(envoy.ports["guard"]) as listener:
        yield listener


def asked(channel: grpc.Channel, *metadata: tuple[str, str]) -> bytes:
    """Ask until the guards are found healthy, and Envoy is not overloaded; return the answer."""
    ask: Callable[..., bytes] = channel.unary_unary(INFER)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask(MESSAGE, metadata=metadata, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            passes = error.details() in {"no healthy upstream", "envoy overloaded"}
            if not passes or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_who_is_asking_is_what_envoy_says_and_not_what_the_client_says(envoy: Envoy, guard: Listener) -> None:
    with grpc.insecure_channel(envoy.address) as channel:
        assert asked(channel) == MESSAGE
        assert asked(channel, (WHO, "somebody else"), (WHO, "and another")) == MESSAGE

    assert guard.told(WHO) == [[(WHO, "127.0.0.1")]] * 2


def test_metadata_deadline_and_trailing_metadata_pass(envoy: Envoy, guard: Listener) -> None:
    with grpc.insecure_channel(envoy.address) as channel:
        asked(channel)
        sent = (("tenant", "a"), ("trace-bin", b"\x00\xff"))
        answer, call = channel.unary_unary(INFER).with_call(MESSAGE, metadata=sent, timeout=40.0)

    assert answer == MESSAGE
    assert dict(call.trailing_metadata())["guard-told"] == "in the end"
    assert guard.told("tenant", "trace-bin")[-1] == list(sent)
    left_s = guard.left_s[-1]
    assert left_s is not None
    assert 0 < left_s < 41.0  # whole milliseconds, rounded up


def test_no_client_is_trusted_to_set_envoys_own_headers(envoy: Envoy, guard: Listener) -> None:
    told = {"x-envoy-upstream-rq-timeout-ms": "60000", "x-envoy-retry-on": "5xx", "x-envoy-max-retries": "9"}
    with grpc.insecure_channel(envoy.address) as channel:
        asked(channel, *told.items())

    assert guard.told(*told, "x-envoy-internal") == [[]]


def test_a_stream_passes_message_by_message(envoy: Envoy, guard: Listener) -> None:
    with grpc.insecure_channel(envoy.address) as channel:
        asked(channel)
        sent = [b"\x0a\x04tiny\x1a\x01" + bytes([number]) for number in range(65, 75)]
        assert list(channel.stream_stream(STREAM)(iter(sent), timeout=PATIENCE_S)) == sent


def test_envoy_finds_no_fault_with_its_configuration(envoy: Envoy, tmp_path: Path) -> None:
    done = subprocess.run(envoy.checking(), capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


@dataclass
class Tight(Envoy):
    """An Envoy that may use less memory."""

    def configuration(self) -> str:
        text = super().configuration()
        assert "max_heap_size_bytes: 2147483648" in text
        return text.replace("2147483648", str(160 * MIB))


def test_messages_that_never_end_are_reset_before_they_fill_the_memory(tmp_path: Path) -> None:
    over, reset = threading.Event(), threading.Event()

    def unfinished() -> Iterator[bytes]:
        yield bytes(32 * MIB)
        over.wait(PATIENCE_S)

    tight = Tight(peers.environment("envoy"), tmp_path)
    with listening(tight.ports["guard"]), running(tight):
        with grpc.insecure_channel(tight.address) as channel:
            asked(channel)
            calls = [channel.stream_unary(INFER).future(unfinished()) for _ in range(12)]
            for call in calls:
                call.add_done_callback(lambda _: reset.set())
            assert reset.wait(PATIENCE_S)
            over.set()
        with grpc.insecure_channel(tight.address) as channel:
            assert asked(channel) == MESSAGE


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ours"), "ours")


def secrets_of(authority: Authority, folder: Path) -> Path:
    """Return a folder with the files that the configuration names."""
    folder.mkdir()
    shown = authority.issue("envoy")
    shutil.copy(shown.cert, folder / "envoy.crt")
    shutil.copy(shown.key, folder / "envoy.key")
    for name in ("clients-ca.crt", "guards-ca.crt"):
        shutil.copy(authority.cert, folder / name)
    return folder


def credentials_of(end: Authority, authority: Authority) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(end.key.read_bytes(), end.cert.read_bytes())], authority.cert.read_bytes(), True
    )


def channel_of(envoy: Envoy, authority: Authority, shown: Authority | None) -> grpc.Channel:
    mine = (shown.key.read_bytes(), shown.cert.read_bytes()) if shown else (None, None)
    return grpc.secure_channel(
        envoy.address, grpc.ssl_channel_credentials(authority.cert.read_bytes(), *mine)
    )


def test_with_tls_clients_are_known_by_their_certificates_and_envoy_by_its_own(
    tmp_path: Path, authority: Authority
) -> None:
    stranger = make_authority(tmp_path, "theirs")
    secure = Envoy(peers.environment("envoy"), tmp_path, secrets_of(authority, tmp_path / "secrets"))
    served = credentials_of(authority.issue("guard", "DNS:guard"), authority)
    with listening(secure.ports["guard"], served) as guard, running(secure):
        with channel_of(secure, authority, authority.issue("alice")) as channel:
            assert asked(channel, (WHO, "CN=bob")) == MESSAGE
        for shown in (None, stranger.issue("alice")):
            with channel_of(secure, authority, shown) as channel, pytest.raises(grpc.RpcError) as refused:
                asked(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    assert guard.told(WHO) == [[(WHO, "CN=alice")]]


def test_a_guard_whose_certificate_is_for_another_name_gets_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    secure = Envoy(peers.environment("envoy"), tmp_path, secrets_of(authority, tmp_path / "secrets"))
    served = credentials_of(authority.issue("another", "DNS:another"), authority)
    with (
        listening(secure.ports["guard"], served) as guard,
        running(secure),
        channel_of(secure, authority, authority.issue("alice")) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary(INFER)(MESSAGE, timeout=PATIENCE_S)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert guard.came == []
