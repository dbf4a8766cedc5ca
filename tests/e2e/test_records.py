"""What a running guard keeps of what it refused, however it ends, and what is told where that fails."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.audit.files import files_of
from guard.audit.verify import verify_log
from guard.cli import main
from guard.errors import SettingsError
from guard.quarantine import read_contents, read_image
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.server import GuardServer
from tests.artifacts import write_tiny_artifact
from tests.e2e.guard_process import Served
from tests.guard.admin_house import bearer, stub_at, token_file
from tests.reference_check import images_and_boundary, linear_logits
from tests.serving import PATIENCE_S, infer_request, serving, settings_for

pytestmark = pytest.mark.e2e

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "models", boundary_bits=BOUNDARY)
    return tmp_path / "models"


def start(repository: Path, **variables: object) -> Served:
    places = {"AUDIT_LOG": "log/audit.jsonl", "QUARANTINE_DIR": "quarantine"}
    records = {f"GUARD_{name}": str(repository.parent / place) for name, place in places.items()}
    return Served.start(repository, **records, **{f"GUARD_{name}": str(v) for name, v in variables.items()})


@contextmanager
def calling(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def refusal(stub: Any, images: np.ndarray, id: str = "") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(infer_request(images, id=id), timeout=PATIENCE_S)
    code: grpc.StatusCode = refused.value.code()
    return code


def lines(repository: Path) -> list[dict[str, Any]]:
    files = files_of(repository.parent / "log")
    return [json.loads(line) for path in files for line in path.read_bytes().split(b"\n") if line]


def wait_for_lines(served: Served, count: int) -> None:
    while served.metric("guard_audit_records_total") < count:
        assert served.process.popen.poll() is None


def test_what_is_refused_is_in_the_audit_log_and_in_quarantine(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = start(repository)
    with calling(served) as stub:
        stub.ModelInfer(infer_request(CLEAN), timeout=PATIENCE_S)
        mixed = np.concatenate([CLEAN[:1], SUSPICIOUS[:1]])
        assert refusal(stub, mixed, 'id"\n{"seq":1}\x1b[0m') is grpc.StatusCode.PERMISSION_DENIED
        assert refusal(stub, SUSPICIOUS[:1]) is grpc.StatusCode.PERMISSION_DENIED
        assert refusal(stub, np.full_like(CLEAN[:1], np.nan)) is grpc.StatusCode.INVALID_ARGUMENT
    assert served.process.end(signal.SIGTERM) == 0

    told = lines(repository)
    [item] = read_contents(tmp_path / "quarantine").items

    assert [line["kind"] for line in told] == [
        "loaded", "server_started", *["verdict"] * 3, "server_stopped",
    ]  # fmt: skip
    assert [(line["verdict"], line["row"], line["reason"]) for line in told[2:5]] == [
        ("reject", 1, ""), ("reject", 0, ""), ("unchecked", 0, "non_finite"),
    ]  # fmt: skip
    assert told[2]["request_id"] == item.request_id == 'id"\n{"seq":1}\x1b[0m'
    assert told[2]["client"] == "ipv4:127.0.0.1"
    assert told[2]["digest"] == item.digest == told[0]["digest"]
    assert told[1]["port"] == served.port
    np.testing.assert_array_equal(read_image(tmp_path / "quarantine", item), SUSPICIOUS[0])
    assert (item.count, item.row, item.label) == (2, 1, int(linear_logits(SUSPICIOUS[:1]).argmax()))
    assert item.score == pytest.approx(told[2]["score"])
    opened, closed = (
        next(record for record in served.process.records if record["message"] == words)
        for words in ("audit log opened", "audit log closed")
    )
    assert (opened["seq"], closed["seq"], closed["hash"]) == (0, 6, told[-1]["hash"])
    assert main(["audit", "verify", str(tmp_path / "log"), "--expect-last", closed["hash"]]) == 0
    assert f"last   seq 6, hash {closed['hash']}" in capsys.readouterr().out


def test_a_guard_that_was_killed_goes_on_with_the_chain_and_the_quarantine(
    repository: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    key.chmod(0o600)
    served = start(repository, AUDIT_KEY_FILE=key)
    with calling(served) as stub:
        refusal(stub, SUSPICIOUS[:1])
        wait_for_lines(served, 3)
        while served.metric("guard_quarantine_items") < 1:
            assert served.process.popen.poll() is None
        assert served.process.end(signal.SIGKILL) == -signal.SIGKILL
    with (tmp_path / "log" / "audit.jsonl").open("ab") as log:
        log.write(b'{"seq":4,"at":"20')  # as if it had been killed while it wrote

    served = start(repository, AUDIT_KEY_FILE=key)
    with calling(served) as stub:
        refusal(stub, SUSPICIOUS)
        while served.metric("guard_quarantine_items") < 2:
            assert served.process.popen.poll() is None
    assert served.process.end(signal.SIGTERM) == 0

    found = verify_log(files_of(tmp_path / "log"), key=key.read_bytes())
    kinds = [line["kind"] for line in lines(repository)]
    assert (found.broken, found.lines, found.unfinished_bytes) == (None, 9, 0)
    assert kinds == [
        "loaded", "server_started", "verdict",
        "recovered", "loaded", "server_started", "verdict", "verdict", "server_stopped",
    ]  # fmt: skip
    assert [item.count for item in read_contents(tmp_path / "quarantine").items] == [1, 2]


async def test_a_disk_that_takes_nothing_costs_no_answer(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "quarantine"
    async with serving(repository, quarantine_dir=folder, policy="flag") as client:
        folder.rename(tmp_path / "gone")
        folder.touch()
        while not client.counted("guard_quarantine_dropped_total", "reason"):
            answer = await client.infer(infer_request(SUSPICIOUS[:1]))
            assert answer.parameters["guard_verdict"].string_param == "flag"
        dropped = client.counted("guard_quarantine_dropped_total", "reason")
    assert set(dropped) == {("unwritable",)}
    assert "suspicious inputs are not kept in quarantine" in caplog.text


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("audit_log", r"audit log .*file/x cannot be opened"),
        ("quarantine_dir", "quarantine folder .*file/x cannot be used"),
    ],
)
async def test_records_that_cannot_be_kept_from_the_start_keep_the_guard_from_starting(
    repository: Path, tmp_path: Path, setting: str, words: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=words):
        await GuardServer(settings_for(repository, **{setting: tmp_path / "file" / "x"})).start()


async def test_one_file_is_written_by_one_guard(repository: Path, tmp_path: Path) -> None:
    async with serving(repository, audit_log=tmp_path / "audit.jsonl"):
        with pytest.raises(SettingsError, match=r"is being written by another process"):
            await GuardServer(settings_for(repository, audit_log=tmp_path / "audit.jsonl")).start()


async def test_swaps_and_admin_calls_are_in_the_audit_log(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write_tiny_artifact(repository, boundary_bits=BOUNDARY)
    asked = {"admin_port": 0, "admin_token_file": token_file(tmp_path)}
    async with (
        serving(repository, audit_log=path, **asked) as client,
        stub_at(f"127.0.0.1:{client.server.admin_port}") as admin,
    ):
        await admin.Swap(pb.SwapRequest(model="tiny", version="1"), metadata=bearer())
        await admin.Rollback(pb.RollbackRequest(model="tiny"), metadata=bearer())
        with pytest.raises(grpc.aio.AioRpcError):
            await admin.Swap(pb.SwapRequest(model="tiny", version="9"), metadata=bearer())
        with pytest.raises(grpc.aio.AioRpcError):
            await admin.Status(pb.StatusRequest())

    told = [json.loads(line) for line in path.read_text().splitlines()]
    by_kind = {line["kind"]: line for line in told}
    assert [line["kind"] for line in told if line["kind"] != "candidate_failed"] == [
        "loaded", "server_started", "swapped", "admin_call", "rolled_back", "admin_call", "admin_call",
        "admin_denied", "server_stopped",
    ]  # fmt: skip
    assert (by_kind["swapped"]["old_version"], by_kind["swapped"]["new_version"]) == ("2", "1")
    assert by_kind["rolled_back"]["new_digest"] == by_kind["swapped"]["old_digest"]
    assert by_kind["swapped"]["actor"] == "token"
    calls = [line for line in told if line["kind"] == "admin_call"]
    assert [(line["method"], line["code"]) for line in calls[:2]] == [("Swap", "OK"), ("Rollback", "OK")]
    assert calls[2]["version"] == "9"
    assert calls[2]["code"] != "OK"
    assert by_kind["admin_denied"]["denied"] == 1
    assert verify_log([path]).broken is None
