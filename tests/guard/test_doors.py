"""Where callers come in: a port with or without TLS, a unix socket, and what is told of one that is taken."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

import guard.server
from guard.errors import SettingsError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.server import GuardServer
from tests.free_ports import free_port
from tests.guard.admin_house import Authority, make_authority
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, tiny_repository, values
from tests.serving import PATIENCE_S, infer_request, settings_for


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path)


@asynccontextmanager
async def started(repository: Path, **settings: object) -> AsyncIterator[GuardServer]:
    server = GuardServer(settings_for(repository, **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def verdict(target: str, credentials: grpc.ChannelCredentials | None = None) -> str:
    """Send a request; return its verdict, or the status that it was refused with."""
    channel = (
        grpc.aio.insecure_channel(target)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials)
    )
    async with channel:
        call = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
            infer_request(CLEAN[:1]), timeout=PATIENCE_S, wait_for_ready=False
        )
        try:
            return values((await call).parameters)["guard_verdict"]
        except grpc.aio.AioRpcError as error:
            return error.code().name


def shown(by: Authority, end: Authority | None = None) -> grpc.ChannelCredentials:
    if end is None:
        return grpc.ssl_channel_credentials(by.cert.read_bytes())
    return grpc.ssl_channel_credentials(by.cert.read_bytes(), end.key.read_bytes(), end.cert.read_bytes())


async def test_the_port_speaks_tls_to_those_who_trust_it_and_to_nobody_in_clear(
    repository: Path, authority: Authority, stranger: Authority
) -> None:
    end = authority.issue("guard")
    async with started(repository, tls_cert=end.cert, tls_key=end.key) as server:
        target = f"127.0.0.1:{server.port}"

        assert await verdict(target, shown(authority)) == "accept"
        assert await verdict(target, shown(stranger)) == "UNAVAILABLE"
        assert await verdict(target) == "UNAVAILABLE"


async def test_mutual_tls_lets_in_whom_its_authority_signed(
    repository: Path, authority: Authority, stranger: Authority
) -> None:
    end = authority.issue("guard")
    tls = {"tls_cert": end.cert, "tls_key": end.key, "tls_client_ca": authority.cert}
    async with started(repository, **tls) as server:
        target = f"127.0.0.1:{server.port}"

        assert await verdict(target, shown(authority, authority.issue("caller"))) == "accept"
        assert await verdict(target, shown(authority)) == "UNAVAILABLE"
        assert await verdict(target, shown(authority, stranger.issue("caller"))) == "UNAVAILABLE"


async def test_a_renewed_certificate_is_shown_and_one_that_does_not_fit_its_key_is_not(
    repository: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    first, second = authority.issue("guard"), stranger.issue("guard")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(first.cert, cert)
    shutil.copy(first.key, key)
    async with started(repository, tls_cert=cert, tls_key=key) as server:
        target = f"127.0.0.1:{server.port}"
        before = await verdict(target, shown(authority))
        shutil.copy(second.cert, cert)  # its key is still on its way
        between = await verdict(target, shown(authority))
        shutil.copy(second.key, key)
        after = [await verdict(target, shown(by)) for by in (authority, stranger)]

    assert (before, between, after) == ("accept", "accept", ["UNAVAILABLE", "accept"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert"}, "tls_cert is set without tls_key; set both or neither"),
        ({"tls_key"}, "tls_key is set without tls_cert; set both or neither"),
        (
            {"tls_client_ca"},
            "tls_client_ca asks for client certificates, for which the port has to speak TLS",
        ),
    ],
)
async def test_half_of_tls_is_none_and_refused(
    repository: Path, authority: Authority, given: set[str], words: str
) -> None:
    files = {"tls_cert": authority.cert, "tls_key": authority.key, "tls_client_ca": authority.cert}

    with pytest.raises(SettingsError, match=words):
        await GuardServer(settings_for(repository, **{name: files[name] for name in given})).start()


async def test_a_key_that_is_not_the_certificates_or_that_all_may_read_is_refused(
    repository: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    own, other = authority.issue("guard"), stranger.issue("guard")
    open_key = tmp_path / "open.key"
    shutil.copy(own.key, open_key)
    open_key.chmod(0o644)
    for key, words in (
        (other.key, r"^tls_cert .* and tls_key .* are not a certificate and its key"),
        (open_key, r"tls_key .*open\.key"),
    ):
        with pytest.raises(SettingsError, match=words):
            await GuardServer(settings_for(repository, tls_cert=own.cert, tls_key=key)).start()


async def test_a_socket_serves_beside_the_port_and_in_its_place(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    async with started(repository, socket=path) as server:
        both = [await verdict(f"127.0.0.1:{server.port}"), await verdict(f"unix:{path}")]
        mode = stat.S_IMODE(path.stat().st_mode)
    gone = not path.exists()
    async with started(repository, socket=path, port="none") as server:
        alone, port = await verdict(f"unix:{path}"), server.port

    assert (both, oct(mode), gone) == (["accept", "accept"], "0o660", True)
    assert (alone, port) == ("accept", 0)


async def test_a_socket_of_one_who_was_killed_is_taken_over_and_nothing_else_is(
    repository: Path, tmp_path: Path
) -> None:
    dead, file = tmp_path / "dead.sock", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    file.write_text("")

    async with started(repository, socket=dead):
        assert await verdict(f"unix:{dead}") == "accept"
        with pytest.raises(SettingsError, match=r"^socket .*dead\.sock belongs to a process that runs"):
            await GuardServer(settings_for(repository, socket=dead)).start()
    with pytest.raises(SettingsError, match=r"^socket .*file is there and is no socket"):
        await GuardServer(settings_for(repository, socket=file)).start()


@pytest.mark.parametrize("door", ["port", "socket", "admin_port", "admin_socket"])
async def test_a_door_that_is_taken_is_found_before_any_model_is_loaded(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    loads: list[object] = []
    monkeypatch.setattr(guard.server, "load_model", lambda *args, **_: loads.append(args))
    token = tmp_path / "token"
    token.write_text("t" * 32)
    token.chmod(0o600)
    family = socket.AF_UNIX if door.endswith("socket") else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind(str(tmp_path / "taken") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        taken.listen()
        name = taken.getsockname()
        settings = {door: name if isinstance(name, str) else name[1]}
        if door == "admin_port":
            settings["admin_token_file"] = token
        with pytest.raises(SettingsError, match=rf"{door}.*(choose another|belongs to a process that runs)"):
            await GuardServer(settings_for(repository, **settings)).start()

    assert loads == []


async def test_a_port_is_held_while_models_load_and_answers_only_after(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    real, seen = guard.server.load_model, []

    def load(*args: object, **hooks: object) -> object:
        with socket.socket() as caller, socket.socket() as other:
            seen.append(caller.connect_ex(("127.0.0.1", port)) != 0)
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                seen.append(True)
        return real(*args, **hooks)

    monkeypatch.setattr(guard.server, "load_model", load)
    async with started(repository, port=port) as server:
        assert (seen, server.port) == ([True, True], port)
        assert await verdict(f"127.0.0.1:{port}") == "accept"


async def test_the_limit_of_a_message_holds_at_every_door(repository: Path, tmp_path: Path) -> None:
    path, images = tmp_path / "grpc.sock", CLEAN[:1].repeat(8, axis=0)
    size = len(infer_request(images).SerializeToString())
    async with started(repository, socket=path, max_message_bytes=size) as server:
        for target in (f"127.0.0.1:{server.port}", f"unix:{path}"):
            async with grpc.aio.insecure_channel(target) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                answer = await stub.ModelInfer(infer_request(images), timeout=PATIENCE_S)
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.ModelInfer(infer_request(images, id="1234"), timeout=PATIENCE_S)
                assert answer.outputs[0].shape[0] == 8
                assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "(max_message_bytes)" in error.value.details()


async def test_a_refusal_is_the_same_at_a_socket(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    async with (
        started(repository, socket=path, port="none"),
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        ready = await stub.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.ModelInfer(infer_request(SUSPICIOUS[:1]), timeout=PATIENCE_S)
        await asyncio.sleep(0)

    assert ready.ready
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
