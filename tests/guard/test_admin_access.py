"""Who gets in: tokens, certificates, the private socket; and which settings would let in too many."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.control.api import SwapReport
from guard.errors import SettingsError
from guard.rpc.access import Access, TokenKeeper
from guard.rpc.admin_server import AdminServer
from guard.rpc.pb import guard_admin_pb2 as pb
from tests.guard.admin_house import (
    PATIENCE_S,
    TOKEN,
    Authority,
    House,
    administering,
    bearer,
    make_authority,
    refusal,
    stub_at,
    token_file,
)
from tests.guard.fake_control import FakeControl, version_info

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
MISSING = "this port asks for a token, as metadata 'authorization: Bearer …' (guard: --token-file)"
WRONG = "the token is not this guard's; give the one of its admin_token_file (guard: --token-file)"
ROLLBACK = pb.RollbackRequest(model="tiny")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def server_end(authority: Authority) -> Authority:
    return authority.issue("guard")


def client_credentials(authority: Authority, end: Authority | None = None) -> Any:
    roots = authority.cert.read_bytes()
    if end is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(roots, end.key.read_bytes(), end.cert.read_bytes())


async def actor_seen(house: House, stub: Any, **options: Any) -> str:
    """Ask for something and return who the control room was told had asked."""
    await refusal(stub.Rollback(ROLLBACK, **options))  # there is nothing to go back to
    return house.control.asked[-1][-1]


# Tokens


async def test_the_token_opens_the_port_and_names_who_asks(tmp_path: Path) -> None:
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
    ):
        answer = await stub.Status(pb.StatusRequest(), metadata=bearer())

        assert [model.name for model in answer.models] == ["tiny"]
        assert await actor_seen(house, stub, metadata=bearer()) == "token"


@pytest.mark.parametrize("metadata", [bearer(f" {TOKEN} "), (("authorization", f"BEARER {TOKEN}"),)])
async def test_what_carries_the_token_is_not_looked_at_closely(tmp_path: Path, metadata: Any) -> None:
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
    ):
        assert len((await stub.Status(pb.StatusRequest(), metadata=metadata)).models) == 1


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ((), MISSING),
        ((("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")), MISSING),
        (bearer(TOKEN[:-1]), WRONG),
        (bearer(TOKEN + "0"), WRONG),
        (bearer(TOKEN.upper()), WRONG),
        (bearer(""), WRONG),
        ((("authorization", TOKEN),), WRONG),
        ((("authorization", f"Basic {TOKEN}"),), WRONG),
        ((("authorization", "Bearer"),), WRONG),
    ],
)
async def test_without_the_token_nothing_is_done(tmp_path: Path, metadata: Any, words: str) -> None:
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
    ):
        assert await refusal(stub.Rollback(ROLLBACK, metadata=metadata)) == (UNAUTHENTICATED, words)

    assert house.control.asked == []
    assert house.reported == [("Rollback", "", "UNAUTHENTICATED")]


@pytest.mark.parametrize(
    "path",
    [
        "/guard.admin.v1.GuardAdmin/Swap",
        "/guard.admin.v1.GuardAdmin/NoSuchMethod",
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/inference.GRPCInferenceService/ModelInfer",
        "/grpc.health.v1.Health/Check",
        "/x",
    ],
)
async def test_without_the_token_not_even_what_exists_is_told(tmp_path: Path, path: str) -> None:
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        grpc.aio.insecure_channel(house.address) as channel,
    ):
        assert await refusal(channel.unary_unary(path)(b"\xff")) == (UNAUTHENTICATED, MISSING)
        code, _ = await refusal(channel.unary_unary(path)(b"\xff", metadata=bearer()))
        assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}


async def test_a_token_is_asked_for_on_the_socket_too_where_one_is_set(tmp_path: Path) -> None:
    async with (
        administering(socket=tmp_path / "s", token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
    ):
        assert await refusal(stub.Status(pb.StatusRequest())) == (UNAUTHENTICATED, MISSING)
        assert await actor_seen(house, stub, metadata=bearer()) == "unix"


async def test_denials_are_told_at_once_and_then_summed_up() -> None:
    now = [100.0]
    told: list[tuple[str, dict[str, object]]] = []
    keeper = TokenKeeper(
        b"\0" * 32, on_event=lambda kind, fields: told.append((kind, dict(fields))), clock=lambda: now[0]
    )

    for at in (100.0, 100.5, 159.0, 160.0, 161.0):
        now[0] = at
        keeper._note("ipv4:10.0.0.7:1")

    assert told == [
        ("admin_denied", {"denied": 1, "last_from": "ipv4:10.0.0.7:1"}),
        ("admin_denied", {"denied": 3, "last_from": "ipv4:10.0.0.7:1"}),
    ]


async def test_the_last_of_a_burst_are_told_of_though_nobody_knocks_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guard.rpc.access._DENIALS_TOLD_EVERY_S", 0.1)
    told: asyncio.Queue[Any] = asyncio.Queue()
    keeper = TokenKeeper(b"\0" * 32, on_event=lambda _, fields: told.put_nowait(fields["denied"]))

    for _ in range(3):
        keeper._note("ipv4:10.0.0.7:1")

    counted = 0
    while counted < 3:
        counted += await asyncio.wait_for(told.get(), PATIENCE_S)
    assert counted == 3


async def test_what_was_not_told_yet_is_told_in_the_end(tmp_path: Path) -> None:
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
    ):
        for _ in range(3):
            await refusal(stub.Status(pb.StatusRequest()))
        assert [fields["denied"] for _, fields in house.events] == [1]

    assert [(kind, fields["denied"]) for kind, fields in house.events] == [
        ("admin_denied", 1),
        ("admin_denied", 2),
    ]


async def test_neither_log_nor_memory_holds_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
    ):
        await refusal(stub.Status(pb.StatusRequest(), metadata=bearer("y" * 40)))
        assert TOKEN not in repr(vars(house.server))
    assert [(kind, fields["denied"]) for kind, fields in house.events] == [("admin_denied", 1)]
    assert "y" * 40 not in caplog.text + repr(house.events)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (TOKEN, 0o604, "can be read or written by everybody on this machine; `chmod o-rw` it"),
        (TOKEN, 0o602, "can be read or written by everybody on this machine; `chmod o-rw` it"),
        (TOKEN[:31], 0o600, "expected a token of at least 32 characters, got 31; make one with `openssl "),
        (
            "",
            0o600,
            "expected a token of at least 32 characters, got 0; make one with `openssl rand -hex 32`",
        ),
        (f"{TOKEN}\n{TOKEN}", 0o600, "expected one token of printable ASCII without spaces, got something "),
        (f"é{TOKEN}", 0o600, "expected one token of printable ASCII without spaces, got something else; "),
    ],
)
def test_a_token_file_that_is_no_secret_or_no_token_is_refused(
    tmp_path: Path, content: str, mode: int, words: str
) -> None:
    path = token_file(tmp_path, content, mode)

    with pytest.raises(SettingsError) as refused:
        AdminServer(Access(port=0, token_file=path))

    assert str(refused.value).startswith(f"admin_token_file {path}")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_token_file_for_a_group_is_fine_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    AdminServer(Access(port=0, token_file=token_file(tmp_path, mode=0o640)))
    with pytest.raises(SettingsError, match=r"nope cannot be read \(No such file or directory\); see to it"):
        AdminServer(Access(port=0, token_file=tmp_path / "nope"))


# Certificates


async def test_a_client_certificate_opens_the_port_and_names_who_asks(
    authority: Authority, server_end: Authority
) -> None:
    tls = {"tls_cert": server_end.cert, "tls_key": server_end.key, "tls_client_ca": authority.cert}
    async with administering(port=0, **tls) as house:
        alice = client_credentials(authority, authority.issue("alice"))
        async with stub_at(house.address, alice) as stub:
            assert await actor_seen(house, stub) == "certificate:alice"


async def test_nobody_gets_in_without_a_certificate_of_the_authority(
    authority: Authority, server_end: Authority, tmp_path: Path
) -> None:
    theirs = make_authority(tmp_path, "theirs")
    tls = {"tls_cert": server_end.cert, "tls_key": server_end.key, "tls_client_ca": authority.cert}
    async with administering(port=0, **tls) as house:
        for credentials in (
            client_credentials(authority),
            client_credentials(authority, theirs.issue("alice")),
            None,
        ):
            async with stub_at(house.address, credentials) as stub:
                code, _ = await refusal(stub.Rollback(ROLLBACK))
                assert code is grpc.StatusCode.UNAVAILABLE

    assert (house.control.asked, house.reported) == ([], [])


async def test_token_and_certificate_are_both_asked_for_where_both_are_set(
    authority: Authority, server_end: Authority, tmp_path: Path
) -> None:
    tls = {"tls_cert": server_end.cert, "tls_key": server_end.key, "tls_client_ca": authority.cert}
    async with administering(port=0, token_file=token_file(tmp_path), **tls) as house:
        async with stub_at(house.address, client_credentials(authority)) as stub:
            code, _ = await refusal(stub.Rollback(ROLLBACK, metadata=bearer()))
            assert code is grpc.StatusCode.UNAVAILABLE
        bob = client_credentials(authority, authority.issue("bob"))
        async with stub_at(house.address, bob) as stub:
            assert await refusal(stub.Rollback(ROLLBACK)) == (UNAUTHENTICATED, MISSING)
            assert await actor_seen(house, stub, metadata=bearer()) == "certificate:bob"


async def test_a_token_travels_over_tls_beyond_this_machine(
    authority: Authority, server_end: Authority, tmp_path: Path
) -> None:
    tls = {"tls_cert": server_end.cert, "tls_key": server_end.key, "token_file": token_file(tmp_path)}
    async with (
        administering(host="0.0.0.0", port=0, **tls) as house,
        stub_at(house.address, client_credentials(authority)) as stub,
    ):
        assert await refusal(stub.Status(pb.StatusRequest())) == (UNAUTHENTICATED, MISSING)
        assert await actor_seen(house, stub, metadata=bearer()) == "token"


def damaged(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("-----BEGIN NONSENSE-----\n")
    path.chmod(0o600)
    return path


Files = Callable[[Path, Authority, Authority], dict[str, Path]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (lambda t, ca, end: {"tls_key": ca.key}, "are not a certificate and its key without a password"),
        (lambda t, ca, end: {"tls_cert": damaged(t, "c")}, "are not a certificate and its key without a "),
        (lambda t, ca, end: {"tls_key": damaged(t, "k")}, "are not a certificate and its key without a "),
        (lambda t, ca, end: {"tls_client_ca": damaged(t, "ca")}, "ca holds no certificate in PEM ("),
        (lambda t, ca, end: {"tls_cert": t / "nope"}, "nope cannot be read (No such file or directory)"),
        (lambda t, ca, end: {"tls_key": t}, "cannot be read (Is a directory); see to it"),
    ],
)
def test_files_that_no_connection_could_be_made_with_are_refused_at_the_start(
    authority: Authority, server_end: Authority, tmp_path: Path, files: Files, words: str
) -> None:
    tls = {"tls_cert": server_end.cert, "tls_key": server_end.key, "tls_client_ca": authority.cert}
    with pytest.raises(SettingsError) as refused:
        AdminServer(Access(port=0, **{**tls, **files(tmp_path, authority, server_end)}))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_that_everybody_can_read_is_refused(server_end: Authority, tmp_path: Path) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(server_end.key.read_bytes())
    key.chmod(0o644)
    access = Access(port=0, tls_cert=server_end.cert, tls_key=key, token_file=token_file(tmp_path))
    with pytest.raises(SettingsError, match=r"admin_tls_key .*open\.key can be read or written by everybody"):
        AdminServer(access)


# Settings that do not go together

P = Path("somewhere")


@pytest.mark.parametrize(
    ("access", "words"),
    [
        (
            {"port": 0},
            "admin_port would let in whoever reaches it; set admin_token_file, or admin_tls_client_ca with "
            "admin_tls_cert and admin_tls_key, or use admin_socket instead",
        ),
        (
            {"port": 0, "socket": P},
            "admin_port would let in whoever reaches it; set admin_token_file, or admin_tls_client_ca with "
            "admin_tls_cert and admin_tls_key, or use admin_socket instead",
        ),
        ({"port": 0, "tls_cert": P, "tls_key": P}, "admin_port would let in whoever reaches it; "),
        (
            {"port": 0, "token_file": P, "tls_cert": P},
            "admin_tls_cert is set without admin_tls_key; set both or neither",
        ),
        (
            {"port": 0, "token_file": P, "tls_key": P},
            "admin_tls_key is set without admin_tls_cert; set both or neither",
        ),
        (
            {"port": 0, "tls_client_ca": P},
            "admin_tls_client_ca asks for client certificates, for which the port has to speak TLS; set "
            "admin_tls_cert and admin_tls_key as well",
        ),
        (
            {"port": 0, "token_file": P, "host": "0.0.0.0"},
            "the admin token would cross the network in clear on admin_host '0.0.0.0'; set admin_tls_cert "
            "and admin_tls_key, or admin_host = '127.0.0.1'",
        ),
        ({"port": 0, "token_file": P, "host": "guard"}, "the admin token would cross the network in clear "),
        (
            {"socket": P, "tls_client_ca": P},
            "admin_tls_client_ca is set and admin_port is not; set admin_port, or leave it out",
        ),
        ({"tls_cert": P}, "admin_tls_cert is set and admin_port is not; set admin_port, or leave it out"),
        (
            {"token_file": P},
            "admin_token_file is set, but neither admin_port nor admin_socket; set one, or leave it out",
        ),
    ],
)
def test_settings_that_would_let_in_too_many_or_nobody_are_refused(
    access: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        Access(**access).check()
    assert str(refused.value).startswith(words)


def test_it_is_closed_unless_it_is_opened() -> None:
    Access().check()
    assert (Access().is_open, Access(port=0).is_open, Access(socket=P).is_open) == (False, True, True)


# The private socket


async def test_the_socket_is_the_owners_alone_and_gone_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "with spaces%20" / "admin.sock"
    path.parent.mkdir()

    async with administering(socket=path) as house:
        mode = path.lstat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(path))
        assert house.server.port is None

    assert not path.exists()
    (tmp_path / "later").touch()
    assert (tmp_path / "later").stat().st_mode & 0o777 != 0o600  # the process's own files are as before


async def test_port_and_socket_may_be_open_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with administering(socket=path, port=0, token_file=token_file(tmp_path)) as house:
        async with stub_at(f"unix:{path}") as stub:
            assert await actor_seen(house, stub, metadata=bearer()) == "unix"
        async with stub_at(house.address) as stub:
            assert await actor_seen(house, stub, metadata=bearer()) == "token"


async def test_who_crowds_the_port_without_a_token_takes_up_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.rpc.interceptors._FIRST_MESSAGE_S", 10 * PATIENCE_S)
    async with (
        administering(port=0, token_file=token_file(tmp_path)) as house,
        grpc.aio.insecure_channel(house.address) as crowd,
        stub_at(house.address) as stub,
    ):
        idle = [crowd.stream_unary("/x")() for _ in range(200)]  # which send nothing
        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(
                *(stub.Status(pb.StatusRequest(), metadata=bearer()) for _ in range(10))
            )
            for call in idle:
                await call.code()

    assert [len(answer.models) for answer in answers] == [1] * 10
    assert house.reported.count(("x", "", "UNAUTHENTICATED")) == 200


class Crowded(FakeControl):
    """Rolls back, for as many as ask at a time, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def rollback(self, model: str, *, actor: str = "") -> SwapReport:
        self.begun.release()
        await self.go.wait()
        return SwapReport(model, version_info("2"), version_info("1"), 0.1, True)


async def test_calls_that_are_let_in_have_so_much_room_and_what_comes_beyond_is_told(tmp_path: Path) -> None:
    control = Crowded()
    async with (
        administering(control, port=0, socket=tmp_path / "s", token_file=token_file(tmp_path)) as house,
        stub_at(house.address) as stub,
        stub_at(f"unix:{tmp_path / 's'}") as private,
        asyncio.timeout(PATIENCE_S),
    ):
        running = [stub.Rollback(ROLLBACK, metadata=bearer()) for _ in range(16)]
        for _ in running:
            await control.begun.acquire()
        assert await refusal(stub.Status(pb.StatusRequest(), metadata=bearer())) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "16 admin calls are being answered, expected at most 16; try again when one of them has ended",
        )
        assert len((await private.Status(pb.StatusRequest(), metadata=bearer())).models) == 1
        control.go.set()
        assert {(await call).new.version for call in running} == {"1"}
        assert len((await stub.Status(pb.StatusRequest(), metadata=bearer())).models) == 1

    assert house.reported[0] == ("Status", "", "RESOURCE_EXHAUSTED")


async def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.is_socket()

    async with administering(socket=path) as house, stub_at(house.address) as stub:
        assert len((await stub.Status(pb.StatusRequest())).models) == 1


async def test_the_socket_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with administering(socket=path) as house:
        with pytest.raises(SettingsError, match="belongs to a process that runs; stop it, or choose another"):
            async with administering(socket=path):
                pass
        async with stub_at(house.address) as stub:
            assert len((await stub.Status(pb.StatusRequest())).models) == 1


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SettingsError, match="is there and is no socket; choose another path, or remove it"):
        async with administering(socket=path):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/s", "its directory is not there; make it, for the guard's user only"),
        ("x" * 120, "choose a path of at most 100 bytes that the guard's user may write to"),
    ],
)
async def test_a_socket_that_cannot_be_made_is_told_in_words(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        async with administering(socket=tmp_path / name):
            pass


async def test_a_port_that_is_taken_is_told_in_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on port {port} of 127.0.0.1 "):
            async with administering(port=port, token_file=token_file(tmp_path)):
                pass
