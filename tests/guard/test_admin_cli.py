"""The operator's commands against a running admin face: what they print, and why they could not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from guard import cli
from guard.admin.client import Connection
from guard.admin.wording import swap_lines
from guard.control.api import CanaryStatus, Failure, OpinionInfo, SwapReport
from tests.free_ports import free_port
from tests.guard.admin_house import PATIENCE_S, House, administering, make_authority, token_file
from tests.guard.fake_control import FakeControl, version_info

GRPC_LOG = re.compile(r"^[IWE]\d{4} .*\n", re.MULTILINE)
"""What gRPC says of the server, which runs in the process of the test."""
DIGEST_1, DIGEST_2 = version_info("1").digest, version_info("2").digest


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error."""
        assert (self.code, self.out) == (2, "")
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").removesuffix("\n")


Guard = Callable[..., Run]


@pytest.fixture
def guard(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    for name in os.environ:
        if name.startswith("GUARD_"):
            monkeypatch.delenv(name)

    def run(*argv: object) -> Run:
        try:
            code = cli.main([str(argument) for argument in argv])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Run(code, out, GRPC_LOG.sub("", err))

    return run


@contextmanager
def in_a_thread(house: AbstractAsyncContextManager[House]) -> Iterator[House]:
    """Run a server beside the test, whose commands block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_S)

    try:
        running = wait_for(house.__aenter__())
        try:
            yield running
        finally:
            wait_for(house.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with in_a_thread(administering(socket=tmp_path / "admin.sock")) as house:
        yield house


# What they do


def test_status_is_a_table(guard: Guard, house: House) -> None:
    run = guard("status", "--admin", house.address)

    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines() == [
        "MODEL  POLICY   VERSION  SINCE                 BOUNDARY     CERTIFIED FRR  ARTIFACT      BEFORE  "
        "AVAILABLE",
        "tiny   enforce  1        2023-11-14 22:13:21Z  1.2500 bits  1.0000%        "
        f"{DIGEST_1[:12]}  -       1, 2, 3",
    ]


@pytest.mark.parametrize(
    ("detector", "values", "refused"),
    [
        ("strip", ("1.2500 bits, 0.5000 bits", "1.0000%, 0.1000%"), "0.5000 bits"),
        ("fused", ("score 0.0000, score -0.5000", "1.0000%, 0.1000%"), "score -0.5000"),
    ],
)
def test_both_boundaries_are_told_where_there_are_two(
    guard: Guard, house: House, detector: str, values: tuple[str, ...], refused: str
) -> None:
    two = replace(version_info("1"), detector=detector, block_boundary=-0.5, block_certified_frr=0.001)
    house.control.tiny = replace(house.control.tiny, current=two)

    run = guard("status", "--admin", house.address)

    for value in values:
        assert f"  {value}  " in run.out
    lines = list(swap_lines(SwapReport("tiny", two, two, 0.1, True)))
    assert lines[3] == f"  refused   {refused}, false rejections 0.1000% certified"


def test_status_tells_of_whom_second_opinions_are_asked(guard: Guard, house: House) -> None:
    asked = (OpinionInfo("scale_up"), OpinionInfo("ibd_psc", "no norm layers"), OpinionInfo("teco_lite"))
    house.control.tiny = replace(
        house.control.tiny, current=replace(version_info("1"), second_opinions=asked)
    )

    run = guard("status", "--admin", house.address)

    assert run.out.splitlines()[2:] == [
        "tiny: second opinions are asked of scale_up, teco_lite",
        "tiny: no second opinion of ibd_psc: no norm layers",
    ]


def test_status_tells_of_the_canary_and_of_what_failed(guard: Guard, house: House) -> None:
    house.control.tiny = replace(
        house.control.tiny,
        current=None,
        canary=CanaryStatus(version_info("2"), 0.05, 1.7e9, True, "", {"requests": 12.0, "p99_s": 0.25}),
        failures=(Failure("3", 1.7e9, "no\nnumbers \x1b[31m"), Failure("1", 1.7e9 + 60, "torn")),
        note="the disk\nhangs",
    )

    run = guard("status", "tiny", "--admin", house.address)

    assert run.out.splitlines()[1:] == [
        "tiny   enforce  -        -      -         -              -         -       1, 2, 3",
        "tiny: version 2 is tried on 0.05 of the requests since 2023-11-14 22:13:20Z",
        "  p99_s                            0.25",
        "  requests                         12",
        r"tiny: version 3 did not come to serve (2023-11-14 22:13:20Z): no\nnumbers \x1b[31m",
        "tiny: version 1 did not come to serve (2023-11-14 22:14:20Z): torn",
        r"tiny: the disk\nhangs",
    ]


def test_status_tells_of_a_canary_that_is_over_how_it_ended(guard: Guard, house: House) -> None:
    over = CanaryStatus(version_info("2"), 0.05, 1.7e9, False, "promoted", {"requests": 12.0})
    house.control.tiny = replace(house.control.tiny, canary=over)

    run = guard("status", "tiny", "--admin", house.address)

    assert run.out.splitlines()[2:] == [
        "tiny: version 2 was tried on 0.05 of the requests: promoted; `guard canary status` has its figures"
    ]


def test_swap_and_rollback_say_what_is_served_now(guard: Guard, house: House) -> None:
    there = guard("swap", "tiny", "--version", "2", "--digest", DIGEST_2, "--admin", house.address)
    again = guard("swap", "tiny", "--version", "2", "--admin", house.address)
    back = guard("rollback", "tiny", "--admin", house.address)

    assert there == Run(
        0,
        "tiny: version 2 is served, in place of 1 (0.50 s)\n"
        f"  artifact  SHA-256 {DIGEST_2}\n"
        "  boundary  2.2500 bits, false rejections 1.0000% certified\n",
        "",
    )
    assert again.out.splitlines()[0] == "tiny: version 2 is served already; nothing was changed"
    assert back.out.splitlines()[0] == "tiny: version 1 is served, in place of 2 (0.50 s)"
    assert house.control.asked[0] == ("swap", "tiny", "2", DIGEST_2, "unix")


def test_a_canary_is_started_looked_at_stopped_and_promoted(guard: Guard, house: House) -> None:
    at = ("--admin", house.address)
    none = guard("canary", "status", "tiny", *at)
    start = guard("canary", "start", "tiny", "2", "--share", "0.2", *at)
    status = guard("canary", "status", "tiny", *at)
    stop = guard("canary", "stop", "tiny", *at)
    guard("canary", "start", "tiny", "2", *at)
    promote = guard("promote", "tiny", *at)

    assert none.error == (
        "model 'tiny' has had no canary since the guard started; `guard canary start` starts one"
    )
    assert start.out.splitlines() == [
        "tiny: version 2 is tried on 0.2 of the requests since 2023-11-14 22:13:20Z",
        "  requests                         12",
    ]
    assert status.out == start.out
    assert stop.out.splitlines()[0] == "tiny: version 2 was tried on 0.2 of the requests: stopped"
    assert promote.out.splitlines()[0] == "tiny: version 2 is served, in place of 1 (0.50 s)"
    assert promote.out.splitlines()[2] == "  boundary  2.2500 bits, false rejections 1.0000% certified"
    assert ("start_canary", "tiny", "2", "0.05", "unix") in house.control.asked


def test_json_holds_everything(guard: Guard, house: House) -> None:
    at = ("--admin", house.address, "--json")
    canary = CanaryStatus(version_info("2", None), 0.5, 2.0, False, "stopped", {"frr": float("nan")})
    house.control.tiny = replace(house.control.tiny, canary=canary)

    [status] = json.loads(guard("status", *at).out)
    shown = json.loads(guard("canary", "status", "tiny", *at).out)
    swap = json.loads(guard("swap", "tiny", "--version", "2", *at).out)

    assert status["current"] == {
        "version": "1",
        "digest": DIGEST_1,
        "model_sha256": version_info("1").model_sha256,
        "boundary_bits": 1.25,
        "certified_frr": 0.01,
        "loaded_at": 1.7e9 + 1,
        "detector": "strip",
        "boundary": 0.0,
        "block_boundary": None,
        "block_certified_frr": None,
        "second_opinions": [],
    }
    assert (status["canary"], shown["figures"], shown["candidate"]["certified_frr"]) == (
        shown,
        {"frr": None},
        None,
    )
    assert (swap["changed"], swap["old"]["version"], swap["new"]["digest"]) == (True, "1", DIGEST_2)


def test_the_address_and_the_token_come_from_the_environment_too(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_a_thread(administering(port=0, token_file=token_file(tmp_path))) as house:
        monkeypatch.setenv("GUARD_ADMIN", house.address)
        monkeypatch.setenv("GUARD_ADMIN_TOKEN_FILE", str(tmp_path / "token"))

        assert guard("swap", "tiny", "--version", "2").code == 0

        assert house.control.asked[-1][-1] == "token"


def test_certificates_open_a_door_beyond_this_machine(guard: Guard, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "ours")
    server, alice = authority.issue("guard"), authority.issue("alice")
    tls = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.cert}
    with in_a_thread(administering(host="0.0.0.0", port=0, **tls)) as house:
        at = ("--admin", house.address, "--tls-ca", authority.cert)

        assert (
            guard(
                "swap", "tiny", "--version", "2", *at, "--tls-cert", alice.cert, "--tls-key", alice.key
            ).code
            == 0
        )

        assert house.control.asked[-1][-1] == "certificate:alice"
        assert guard("status", *at).error.startswith(f"the guard at {house.address} cannot be reached (")
        other = make_authority(tmp_path, "theirs")
        assert guard("status", "--admin", house.address, "--tls-ca", other.cert).error.endswith(
            "; is it running, with this admin_port, and are these the --tls-ca, --tls-cert, --tls-key for it?"
        )


# What they say when they cannot


def test_a_refused_candidate_is_told_with_the_servers_reason(guard: Guard, house: House) -> None:
    run = guard("swap", "tiny", "--admin", house.address)

    assert run.error == "version '3' of model 'tiny' gives no numbers; '1' serves on"


@pytest.mark.parametrize("command", [["status"], ["swap"], ["rollback"], ["promote"], ["canary", "stop"]])
def test_an_unknown_model_is_told(guard: Guard, house: House, command: list[str]) -> None:
    run = guard(*command, "nope", "--admin", house.address)

    assert run.error == "model 'nope' is not served here; served: ['tiny']"


def test_a_wrong_token_and_none_are_told_apart(guard: Guard, tmp_path: Path) -> None:
    with in_a_thread(administering(port=0, token_file=token_file(tmp_path))) as house:
        wrong = tmp_path / "wrong"
        wrong.write_text("x" * 40)

        none, other = (
            guard("status", "--admin", house.address),
            guard("status", "--admin", house.address, "--token-file", wrong),
        )

    assert none.error.startswith("this port asks for a token, ")
    assert none.error.endswith("(guard: --token-file)")
    assert other.error.startswith("the token is not this guard's; give the one of its admin_token_file ")


def test_a_guard_that_is_not_there_is_told(guard: Guard, tmp_path: Path) -> None:
    port = free_port()
    by_port = guard("status", "--admin", f"127.0.0.1:{port}")
    by_socket = guard("status", "--admin", f"unix:{tmp_path}/nope.sock")

    assert by_port.error.startswith(f"the guard at 127.0.0.1:{port} cannot be reached (")
    assert by_port.error.endswith(
        "; is it running, with this admin_port, and does it ask for TLS (--tls-ca)?"
    )
    assert "failed to connect to all addresses" not in by_port.error
    assert by_socket.error.endswith("; is it running, with this admin_socket, and are you its user?")


def test_an_operation_under_way_is_told_or_waited_for(guard: Guard, tmp_path: Path) -> None:
    control = FakeControl()
    with in_a_thread(administering(control, socket=tmp_path / "s")) as house:
        at = ("--admin", house.address)
        release = control.hold = asyncio.Event()
        first: list[int] = []
        swapping = threading.Thread(
            target=lambda: first.append(cli.main(["swap", "tiny", "--version", "2", *at]))
        )
        swapping.start()
        while not control.held.is_set():
            assert swapping.is_alive()

        busy = guard("rollback", "tiny", *at)
        threading.Timer(0.3, lambda: release._loop.call_soon_threadsafe(release.set)).start()  # type: ignore[attr-defined]
        waited = guard("rollback", "tiny", *at, "--wait")
        swapping.join(PATIENCE_S)

    assert busy.error == "another operation on model 'tiny' is under way; wait for its end"
    assert (first, waited.code) == ([0], 0)
    assert "tiny: version 1 is served, in place of 2" in waited.out


def test_an_answer_that_does_not_come_is_told(guard: Guard, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen()
        run = guard("rollback", "tiny", "--admin", f"unix:{tmp_path}/s", "--timeout", "0.2")

    assert run.error == (
        f"no answer from unix:{tmp_path}/s within 0.2 s (--timeout); what was asked for may still be done: "
        "see `guard status`"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["status", "--token-file", "no/file"],
            "--token-file no/file cannot be read (No such file or directory)",
        ),
        (
            ["status", "--tls-ca", "no/file"],
            "--tls-ca no/file cannot be read (No such file or directory); give",
        ),
        (["status", "--admin", "nowhere"], "--admin 'nowhere': expected HOST:PORT or unix:PATH, such as "),
        (["status", "--timeout", "0"], "argument --timeout: expected seconds above 0, got '0'; see `guard "),
        (["status", "--timeout", "nan"], "argument --timeout: expected seconds above 0, got 'nan'; see "),
        (["canary", "explode", "tiny"], "argument ACTION: invalid choice: 'explode' "),
        (
            ["canary", "start", "tiny"],
            "the following arguments are required: VERSION; see `guard canary start",
        ),
        (["swap"], "the following arguments are required: MODEL; see `guard swap --help`"),
        (["swap", "tiny", "--ver", "2"], "unrecognized arguments: --ver 2; see `guard swap --help`"),
        (["status", "--tls-cert", "c"], "--tls-cert and --tls-key belong together; give both or neither"),
    ],
)
def test_a_wrong_command_line_is_one_line(guard: Guard, argv: list[str], words: str) -> None:
    assert guard(*argv).error.startswith(words)


def test_a_token_is_not_sent_in_clear_and_an_empty_one_not_at_all(guard: Guard, tmp_path: Path) -> None:
    token = token_file(tmp_path)
    clear = guard("status", "--admin", "guard.example:8002", "--token-file", token)
    empty = guard("status", "--token-file", token_file(tmp_path, ""))

    assert clear.error == (
        "the token would cross the network to guard.example:8002 in clear; give --tls-ca, or go through a "
        "tunnel to 127.0.0.1"
    )
    assert empty.error == f"--token-file {token} holds no token; give the guard's own"


def test_a_socket_without_its_prefix_is_told_before_the_token_is_looked_at(
    guard: Guard, tmp_path: Path
) -> None:
    token = token_file(tmp_path)
    assert guard("status", "--admin", "run/admin.sock", "--token-file", token).error == (
        "--admin 'run/admin.sock': expected HOST:PORT or unix:PATH, such as 127.0.0.1:8002"
    )


def test_who_can_hear_is_known_by_the_address() -> None:
    private = ["127.0.0.1:8002", "localhost:1", "[::1]:1", "unix:/run/s"]
    assert [Connection(address).is_private for address in private] == [True] * 4
    assert [Connection(address).is_private for address in ("guard:1", "10.0.0.1:1")] == [False] * 2
    assert Connection("guard:1", tls_ca=Path("ca")).is_private is True


def test_the_data_port_is_told_apart_from_the_admin_port(guard: Guard) -> None:
    import grpc

    from guard.rpc.interceptors import Doorkeeper

    async def serve() -> AsyncIterator[House]:
        server = grpc.aio.server(interceptors=[Doorkeeper(max_message_bytes=1000)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield House(FakeControl(), None, f"127.0.0.1:{port}")  # type: ignore[arg-type]
        await server.stop(None)

    from contextlib import asynccontextmanager

    with in_a_thread(asynccontextmanager(serve)()) as data:
        run = guard("status", "--admin", data.address)

    assert run.error == (
        f"{data.address} is no admin port of a guard (method '/guard.admin.v1.GuardAdmin/Status' is not "
        "served; ask for the server's metadata); give that with --admin"
    )


@pytest.mark.parametrize("command", ["status", "swap", "rollback", "canary", "promote"])
def test_each_command_has_its_help_and_loads_no_other_package(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def looked(group: str) -> None:
        pytest.fail(f"entry points of {group} were read")

    monkeypatch.setattr(cli, "entry_points", looked)

    shown = guard(command, "--help")

    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"usage: guard {command} ")


def test_they_need_no_onnx_runtime_and_help_needs_no_grpc(tmp_path: Path) -> None:
    script = """
import sys
from guard import cli
try:
    cli.main(sys.argv[1:])
except SystemExit:
    pass
print(sorted({"onnxruntime", "onnx", "grpc", "pydantic", "prometheus_client"} & set(sys.modules)))
"""
    asked = [["status", "--help"], ["status", "--admin", f"unix:{tmp_path}/nope"]]
    loaded = [
        subprocess.run(
            [sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=60, check=True
        ).stdout.splitlines()[-1]
        for argv in asked
    ]

    assert loaded[0] == "[]"
    assert loaded[1] == "['grpc']"


def test_nothing_is_logged_by_a_command_that_works(
    guard: Guard, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert guard("status", "--admin", house.address).err == ""
    assert caplog.records == []
