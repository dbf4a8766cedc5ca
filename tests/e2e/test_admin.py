"""Operating a real guard: its admin face, the commands, and what must not be reachable where inference is."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from guard.errors import SettingsError
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.pb import guard_admin_pb2_grpc as pb_grpc
from guard.rpc.pb import open_inference_pb2 as v2
from guard.rpc.pb import open_inference_pb2_grpc as v2_grpc
from guard.server import GuardServer
from tests.artifacts import write_tiny_artifact
from tests.e2e.guard_process import GUARD, Served
from tests.guard.admin_house import bearer, refusal, stub_at, token_file
from tests.reference_check import images_and_boundary
from tests.serving import PATIENCE_S, infer_request, serving, settings_for

CLEAN, _, _, BOUNDARY = images_and_boundary()
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["GuardAdmin"].methods}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three versions of a model; the third was changed after it was written."""
    for _ in range(3):
        newest = write_tiny_artifact(tmp_path / "models", boundary_bits=BOUNDARY)
    (newest / "overlays.npy").write_bytes(b"changed")
    return tmp_path / "models"


# In this process


async def test_nothing_of_the_admin_face_is_on_the_data_port(repository: Path, tmp_path: Path) -> None:
    async with serving(repository, admin_port=0, admin_token_file=token_file(tmp_path)) as client:
        data = pb_grpc.GuardAdminStub(client.channel)
        for name, method in METHODS.items():
            request = getattr(pb, method.input_type.name)(model="tiny")
            assert await refusal(getattr(data, name)(request, metadata=bearer())) == (
                grpc.StatusCode.UNIMPLEMENTED,
                f"method '/guard.admin.v1.GuardAdmin/{name}' is not served; ask for the server's metadata",
            )
        for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
            call = getattr(client.stub, name)
            assert await refusal(call(getattr(v2, f"{name}Request")(), metadata=bearer())) == (
                grpc.StatusCode.UNIMPLEMENTED,
                f"{name} is not served: models are loaded by the operator, on the admin port (setting "
                "admin_port), never on this one",
            )
        status = await client.server.control.status("tiny")

    assert [model.current and model.current.version for model in status] == ["2"]
    assert status[0].previous == ()


async def test_it_is_off_unless_it_is_asked_for(repository: Path) -> None:
    async with serving(repository) as client:
        assert client.server.admin_port is None


async def test_a_swap_is_seen_by_the_next_request_and_counted(repository: Path, tmp_path: Path) -> None:
    async with (
        serving(repository, admin_port=0, admin_token_file=token_file(tmp_path)) as client,
        stub_at(f"127.0.0.1:{client.server.admin_port}") as admin,
    ):
        before = await client.infer(infer_request(CLEAN[:1]))
        swapped = await admin.Swap(pb.SwapRequest(model="tiny", version="1"), metadata=bearer())
        after = await client.infer(infer_request(CLEAN[:1]))
        [status] = (await admin.Status(pb.StatusRequest(), metadata=bearer())).models
        back = await admin.Rollback(pb.RollbackRequest(model="tiny"), metadata=bearer())
        last = await client.infer(infer_request(CLEAN[:1]))
        code, words = await refusal(admin.Swap(pb.SwapRequest(model="tiny", version="3"), metadata=bearer()))
        denied = await refusal(admin.Status(pb.StatusRequest()))
        counted = client.counted("guard_rpcs_total", "method", "model", "code")

    assert [answer.model_version for answer in (before, after, last)] == ["2", "1", "2"]
    assert (swapped.old.version, swapped.new.version, swapped.changed) == ("2", "1", True)
    assert (status.current.version, list(status.previous), list(status.available)) == (
        "1",
        ["2"],
        ["1", "2", "3"],
    )
    assert back.new.digest == swapped.old.digest
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "overlays.npy" in words
    assert denied[0] is grpc.StatusCode.UNAUTHENTICATED
    assert {key: count for key, count in counted.items() if key[0] != "ModelInfer"} == {
        ("Swap", "tiny", "OK"): 1,
        ("Status", "", "OK"): 1,
        ("Rollback", "tiny", "OK"): 1,
        ("Swap", "tiny", "FAILED_PRECONDITION"): 1,
        ("Status", "", "UNAUTHENTICATED"): 1,
    }


async def test_every_call_is_in_the_audit_log_those_turned_away_too(repository: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    async with (
        serving(repository, admin_port=0, admin_token_file=token_file(tmp_path), audit_log=audit) as client,
        stub_at(f"127.0.0.1:{client.server.admin_port}") as admin,
    ):
        await refusal(admin.Swap(pb.SwapRequest(model="tiny"), metadata=bearer("x" * 40)))
        await admin.Swap(pb.SwapRequest(model="tiny", version="1"), metadata=bearer())
        await refusal(admin.Swap(pb.SwapRequest(model="tiny", version="../x"), metadata=bearer()))

    records = [json.loads(line) for line in audit.read_text().splitlines()]
    kinds = [record["kind"] for record in records]
    assert [kind for kind in kinds if kind.startswith(("admin", "swap"))] == [
        *("admin_denied", "swapped", "admin_call", "admin_call"),
    ]
    calls = [record for record in records if record["kind"] == "admin_call"]
    assert [(call["actor"], call["version"], call["code"]) for call in calls] == [
        ("token", "1", "OK"),
        ("token", "../x", "INVALID_ARGUMENT"),
    ]


async def test_tritons_repository_calls_load_a_version(repository: Path, tmp_path: Path) -> None:
    async with (
        serving(repository, admin_socket=tmp_path / "s") as client,
        grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel,
    ):
        triton = v2_grpc.GRPCInferenceServiceStub(channel)
        request = v2.RepositoryModelLoadRequest(model_name="tiny")
        request.parameters["version"].string_param = "1"
        await triton.RepositoryModelLoad(request)
        index = (await triton.RepositoryIndex(v2.RepositoryIndexRequest())).models
        answer = await client.infer(infer_request(CLEAN[:1]))

    assert answer.model_version == "1"
    assert [(entry.version, entry.state) for entry in index] == [
        ("1", "READY"),
        ("2", "UNAVAILABLE"),
        ("3", "UNAVAILABLE"),
    ]
    assert "overlays.npy" in index[2].reason


async def test_an_admin_port_that_would_be_open_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    server = GuardServer(settings_for(tmp_path / "no repository at all", admin_port=0))
    with pytest.raises(SettingsError, match="admin_port would let in whoever reaches it; set admin_token_"):
        await server.start()


async def test_a_guard_whose_admin_socket_is_taken_does_not_start(repository: Path, tmp_path: Path) -> None:
    async with serving(repository, admin_socket=tmp_path / "s"):
        second = GuardServer(settings_for(repository, admin_socket=tmp_path / "s"))
        with pytest.raises(SettingsError, match="belongs to a process that runs; stop it"):
            await second.start()
        async with stub_at(f"unix:{tmp_path}/s") as admin:
            assert len((await admin.Status(pb.StatusRequest())).models) == 1


# As processes


@dataclass
class Operated:
    """A guard process, and the commands that operate it."""

    served: Served
    socket: Path

    def guard(self, *argv: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
        return subprocess.run(
            [GUARD, *argv],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**clean, "GUARD_ADMIN": f"unix:{self.socket}"},
        )

    def version(self) -> str:
        """Return the version that answers."""
        with grpc.insecure_channel(f"127.0.0.1:{self.served.port}") as channel:
            stub = v2_grpc.GRPCInferenceServiceStub(channel)
            answer = stub.ModelInfer(infer_request(np.asarray(CLEAN[:1])), timeout=PATIENCE_S)
        return str(answer.model_version)


@pytest.mark.e2e
def test_an_operator_swaps_and_rolls_back_by_commands(repository: Path, tmp_path: Path) -> None:
    socket = tmp_path / "admin.sock"
    operated = Operated(Served.start(repository, "--admin-socket", str(socket)), socket)

    mode = stat.S_IMODE(socket.lstat().st_mode)
    swap = operated.guard("swap", "tiny", "--version", "1")
    answers = operated.version()
    refused = operated.guard("swap", "tiny")
    back = operated.guard("rollback", "tiny", "--json")
    status = json.loads(operated.guard("status", "--json").stdout)
    code = operated.served.process.end(signal.SIGTERM)
    gone = operated.guard("status")

    assert (mode, code, socket.exists()) == (0o600, 0, False)
    calls = [record for record in operated.served.process.records if record["message"] == "admin call"]
    assert [(call["method"], call["model"], call["actor"], call["code"]) for call in calls] == [
        ("Swap", "tiny", "unix", "OK"),
        ("Swap", "tiny", "unix", "FAILED_PRECONDITION"),
        ("Rollback", "tiny", "unix", "OK"),
        ("Status", "", "unix", "OK"),
    ]
    assert (swap.returncode, swap.stderr, answers) == (0, "", "1")
    assert swap.stdout.startswith("tiny: version 1 is served, in place of 2 (")
    assert (refused.returncode, refused.stdout) == (2, "")
    [line] = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert "overlays.npy" in line
    assert json.loads(back.stdout)["new"]["version"] == "2"
    assert [failure["version"] for failure in status[0]["failures"]] == ["3"]
    assert (gone.returncode, gone.stdout) == (2, "")
    assert gone.stderr.startswith(f"error: the guard at unix:{socket} cannot be reached (")


@pytest.mark.e2e
def test_a_guard_that_was_killed_leaves_a_socket_that_the_next_one_takes(
    repository: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "admin.sock"
    first = Served.start(repository, "--admin-socket", str(socket))
    assert first.process.end(signal.SIGKILL) == -signal.SIGKILL
    assert socket.is_socket()

    operated = Operated(Served.start(repository, "--admin-socket", str(socket)), socket)
    status = operated.guard("status")

    assert operated.served.process.end(signal.SIGTERM) == 0
    assert (status.returncode, status.stdout.split()[9:12]) == (0, ["AVAILABLE", "tiny", "enforce"])
