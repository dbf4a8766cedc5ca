"""The log that is written: continued, put aside, locked, and full disks survived."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from guard.audit.chain import MAX_LINE_BYTES
from guard.audit.files import files_of
from guard.audit.ledger import Ledger, Note
from guard.audit.log import AuditLog, read_key
from guard.audit.verify import verify_log
from guard.cli import main
from guard.errors import SettingsError
from guard.incidents import Witness
from guard.metrics import Metrics
from guard.records import Records
from guard.server import GuardServer
from guard.writer_thread import WriterThread
from tests.artifacts import write_tiny_artifact
from tests.records import Tally, incident
from tests.serving import settings_for

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def opened(path: Path, tally: Tally | None = None, **options: object) -> AuditLog:
    usual = {"max_bytes": 2**20, "key": None, "counts": tally or Tally()}
    return AuditLog(path, **{**usual, **options})  # type: ignore[arg-type]


def records(place: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in files_of(place) for line in path.read_text().splitlines()]


def test_verdicts_and_events_are_written_in_order_and_counted(tmp_path: Path) -> None:
    tally = Tally()
    log = opened(tmp_path / "audit.jsonl", tally)
    log.event("server_started", port=8001)
    log.saw(incident(label=-1, score=float("nan"), request_id='x"\n{}'))
    log.event("swap", kind="x", model="tiny")
    log.close(PATIENCE_S)

    first, second, third = records(tmp_path)

    assert isinstance(log, Witness)
    assert (first["kind"], first["port"]) == ("server_started", 8001)
    assert second["kind"] == "verdict"
    assert (second["verdict"], second["policy"], second["client"]) == ("reject", "enforce", "ipv4:10.0.0.7")
    assert (second["label"], second["score"], second["request_id"]) == (None, None, 'x"\n{}')
    assert "image" not in second
    assert (third["kind"], third["field_kind"]) == ("swap", "x")
    assert log.last == verify_log(files_of(tmp_path)).last
    assert (tally.counted, tally.failing) == ({"written": 3, "lost": 0}, [])
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o640


def test_a_log_that_is_opened_again_goes_on_where_it_stood(tmp_path: Path) -> None:
    for number in range(3):
        log = opened(tmp_path / "audit.jsonl", key=b"k" * 16)
        log.event("event", number=number)
        log.close(PATIENCE_S)

    found = verify_log(files_of(tmp_path), key=b"k" * 16)

    assert [record["seq"] for record in records(tmp_path)] == [1, 2, 3]
    assert (found.broken, found.lines) == (None, 3)


@pytest.mark.parametrize("torn", [b"{", b'{"seq":2,"at":"20', b"\x00" * 3 * MAX_LINE_BYTES, b"\xff\xfe"])
def test_a_torn_last_line_is_closed_with_a_record_that_says_so(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    ledger = Ledger(path, max_bytes=2**20)
    ledger.write([Note("event", 1.0, {})])
    ledger.close()
    with path.open("ab") as file:
        file.write(torn)
    if len(torn) < MAX_LINE_BYTES:
        assert verify_log([path]).unfinished_bytes == len(torn)

    log = opened(path)
    log.event("after")
    log.close(PATIENCE_S)

    _, recovered, after = records(path)
    assert (recovered["kind"], recovered["torn_bytes"]) == ("recovered", len(torn))
    assert str(recovered["torn"]).startswith(torn[:100].decode("latin-1"))
    assert after["kind"] == "after"
    assert verify_log([path]).broken is None
    assert verify_log([path]).unfinished_bytes == 0


def test_a_line_torn_while_nothing_else_was_there_is_recovered_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"seq":1')
    log = opened(path)
    log.event("after")
    log.close(PATIENCE_S)

    assert [record["kind"] for record in records(path)] == ["recovered", "after"]


def test_a_torn_line_whose_record_is_torn_as_well_does_not_end_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pwrite, clock = tmp_path / "audit.jsonl", os.pwrite, itertools.count(1.0)
    path.write_bytes(b'{"seq":1,' * 10)
    monkeypatch.setattr("guard.audit.ledger.time.time", lambda: next(clock))
    ledger = Ledger(path, max_bytes=2**20)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def full_after_half(file: int, data: bytes, offset: int) -> None:
        pwrite(file, data[: len(data) // 2], offset)
        full()

    for call, failing in (("fsync", full), ("pwrite", full_after_half)):
        with monkeypatch.context() as disk:
            disk.setattr(f"guard.audit.ledger.os.{call}", failing)
            with pytest.raises(OSError, match="No space left"):
                ledger.write([Note("event", 1.0, {})])
    ledger.close()  # as a kill would

    again = Ledger(path, max_bytes=2**20)
    again.write([Note("event", 2.0, {})])
    again.close()
    assert [record["kind"] for record in records(path)] == ["recovered", "event"]
    assert verify_log([path]).broken is None


def test_a_file_that_is_full_is_put_aside_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        log = opened(path, max_bytes=1000)
        for number in range(10):
            log.event("event", number=number)
        log.close(PATIENCE_S)

    files = files_of(tmp_path)

    assert [file.name for file in files[:2]] == ["audit-000001.jsonl", "audit-000002.jsonl"]
    assert files[-1] == path
    assert all(file.stat().st_size <= 1000 for file in files)
    assert verify_log(files).lines == 20
    assert verify_log(files).broken is None
    path.unlink()  # as after a crash between putting aside and going on
    log = opened(path, max_bytes=1000)
    log.event("event")
    log.close(PATIENCE_S)
    before = len(records(files[-2])) if files[-2].exists() else 0
    assert before
    assert records(path)[-1]["prev"] == records(files[-2])[-1]["hash"]


def test_a_line_longer_than_a_file_may_be_gets_one_of_its_own(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit.jsonl", max_bytes=1)
    for _ in range(3):
        log.event("event")
    log.close(PATIENCE_S)

    assert [len(records(path)) if path.stem != "audit" else 1 for path in files_of(tmp_path)] == [1, 1, 1]


def test_what_cannot_be_continued_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    ledger = Ledger(path, max_bytes=2**20, key=b"k" * 16)
    ledger.write([Note("event", 1.0, {})])
    with pytest.raises(SettingsError, match="written by another process"):
        opened(path, key=b"k" * 16)
    ledger.close()

    with pytest.raises(SettingsError, match=r"another key.*guard audit verify.*audit_key_file"):
        opened(path)
    path.write_bytes(path.read_bytes().replace(b"event", b"evenT"))
    with pytest.raises(SettingsError, match=r"it was edited"):
        opened(path, key=b"k" * 16)
    with pytest.raises(SettingsError, match=r"cannot be opened \(Is a directory\)"):
        opened(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(path)
    with pytest.raises(SettingsError, match=r"cannot be opened"):
        opened(tmp_path / "link.jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be opened"):
        opened(tmp_path / "file" / "audit.jsonl")


def test_a_log_that_was_moved_away_while_it_is_written_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    ledger = Ledger(path, max_bytes=2**20)
    ledger.write([Note("event", 1.0, {})])
    path.rename(tmp_path / "audit-000001.jsonl")
    ledger.write([Note("event", 2.0, {})])
    path.write_bytes(b"")  # and cut, as some rotate logs
    ledger.write([Note("event", 3.0, {})])
    ledger.close()

    assert [record["seq"] for record in records(tmp_path)] == [1, 3]
    assert verify_log(files_of(tmp_path)).broken is not None


FULL_DISK = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, ".")
from tests.records import Tally
from guard.audit.log import AuditLog
from guard.audit.verify import verify_log

path, tally = Path(sys.argv[1]), Tally()
log = AuditLog(path, max_bytes=2**20, key=None, counts=tally, max_waiting=50, retry_s=0.005)
log.event("before")
while tally.counted["written"] < 1:
    time.sleep(0.001)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
log.event("first", text="x" * 200)
while True not in tally.failing:
    time.sleep(0.001)
for number in range(200):
    log.event("event", number=number)
assert verify_log([path]).lines == 1, "cut back"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while tally.counted["lost"] < 150:
    time.sleep(0.001)
log.event("after")
log.close(60.0)
print(json.dumps([tally.counted, tally.failing]))
"""


def test_a_full_disk_is_counted_and_the_gap_is_told_once_it_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr

    counted, failing = json.loads(ran.stdout)
    kinds = [record["kind"] for record in records(path)]
    found = verify_log([path])

    assert counted == {"written": 54, "lost": 150}
    assert failing == [True, False]
    assert kinds == ["before", "first", *["event"] * 50, "gap", "after"]
    assert [record["lost"] for record in records(path) if record["kind"] == "gap"] == [150]
    assert (found.broken, found.gaps, found.lines) == (None, 150, 54)


def test_what_cannot_be_written_until_the_end_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Ledger, _notes: list[Note]) -> None:
        raise OSError(28, "No space left on device")

    tally = Tally()
    log = opened(tmp_path / "audit.jsonl", tally, retry_s=PATIENCE_S)
    monkeypatch.setattr(Ledger, "write", full)
    log.event("a")
    log.event("b")
    log.close(PATIENCE_S)

    assert tally.counted["lost"] == 2
    assert tally.failing == [True]


def test_a_writer_that_is_busy_loses_what_there_is_no_room_for_and_says_after_what() -> None:
    entered, go, seen = threading.Event(), threading.Event(), []

    def write(items: list[str], lost: int) -> bool:
        entered.set()
        assert go.wait(PATIENCE_S)
        seen.append((list(items), lost))
        return True

    writer = WriterThread(write, name="test", limit=10)
    assert writer.put("heavier than all room", 11)
    assert entered.wait(PATIENCE_S)
    taken = [writer.put(name, weight) for name, weight in [("a", 6), ("b", 6), ("c", 4), ("d", 1)]]
    go.set()

    assert writer.close(PATIENCE_S) == 0
    assert taken == [True, False, True, False]
    assert seen == [(["heavier than all room"], 0), (["a", "c"], 2)]
    assert not writer.put("late")


def test_what_can_be_written_again_just_when_it_is_closed_is_told_once() -> None:
    calls: list[tuple[list[int], int]] = []
    entered, works = threading.Semaphore(0), threading.Event()

    def write(items: list[int], lost: int) -> bool:
        calls.append((list(items), lost))
        entered.release()
        if not works.is_set():
            return False
        items.clear()
        return True

    writer = WriterThread(write, name="test", limit=1, retry_s=PATIENCE_S)
    assert writer.put(1)
    assert entered.acquire(timeout=PATIENCE_S)
    assert [writer.put(number) for number in (2, 3, 4)] == [True, False, False]
    works.set()

    assert writer.close(PATIENCE_S) == 0
    assert calls == [([1], 0), ([1], 0), ([2], 2)]


def test_a_defect_of_the_writer_loses_its_items_and_not_the_thread() -> None:
    seen: list[tuple[list[int], int]] = []

    def write(items: list[int], lost: int) -> bool:
        if 0 in items:
            raise RuntimeError("defect")
        seen.append((list(items), lost))
        return True

    writer = WriterThread(write, name="test", limit=10)
    writer.put(0)
    assert writer.close(PATIENCE_S) == 0
    assert seen == [([], 1)]


def test_a_writer_that_has_nothing_to_do_is_called_from_time_to_time_where_that_is_asked_for() -> None:
    called = threading.Semaphore(0)

    def write(items: list[int], lost: int) -> bool:
        assert (items, lost) == ([], 0)
        called.release()
        return True

    writer = WriterThread(write, name="test", limit=10, idle_s=0.001)
    assert called.acquire(timeout=PATIENCE_S)
    assert called.acquire(timeout=PATIENCE_S)
    assert writer.close(PATIENCE_S) == 0


def test_a_writer_that_hangs_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.writer_thread._LAST_WRITE_S", 0.01)
    entered, go = threading.Event(), threading.Event()

    def write(_items: list[int], _lost: int) -> bool:
        entered.set()
        return go.wait(PATIENCE_S)

    writer = WriterThread(write, name="test", limit=10)
    writer.put(1)
    assert entered.wait(PATIENCE_S)
    writer.put(2)
    assert writer.close(0.01) == 1
    go.set()


@pytest.mark.parametrize(("content", "key"), [(b"0123456789abcdef\n", b"0123456789abcdef"), (None, None)])
def test_a_key_is_read(tmp_path: Path, content: bytes | None, key: bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    assert read_key(path if content else None) == key


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read \(No such file"):
        read_key(tmp_path / "nowhere")
    for content in (b"", b"short", b"x" * 5000):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(SettingsError, match="expected 16 to 4096 bytes"):
            read_key(tmp_path / "key")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644])
async def test_a_key_that_is_no_secret_keeps_the_guard_from_starting(tmp_path: Path, mode: int) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(mode)
    write_tiny_artifact(tmp_path / "models")
    settings = settings_for(
        tmp_path / "models", audit_log=tmp_path / "log" / "audit.jsonl", audit_key_file=key
    )

    with pytest.raises(SettingsError) as refused:
        await GuardServer(settings).start()

    assert str(refused.value) == (
        f"audit_key_file {key} can be read or written by everybody on this machine; `chmod o-rw` it (a "
        f"Kubernetes secret: defaultMode: 0440)"
    )
    assert not (tmp_path / "log").exists()


def test_a_key_for_a_group_opens_a_log(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    (tmp_path / "key").chmod(0o640)
    kept = Records(Metrics(CollectorRegistry()))
    kept.open_audit(tmp_path / "audit.jsonl", max_bytes=10_000, key_file=tmp_path / "key")
    kept.event("event", {})
    kept.close(PATIENCE_S)
    assert verify_log([tmp_path / "audit.jsonl"], key=b"k" * 32).broken is None
    assert verify_log([tmp_path / "audit.jsonl"]).broken is not None


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o602, True), (0o640, False), (0o600, False)])
def test_the_command_warns_of_a_key_that_is_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int, warned: bool
) -> None:
    key, path = tmp_path / "key", tmp_path / "log" / "audit.jsonl"
    key.write_bytes(b"k" * 32)
    key.chmod(mode)
    log = opened(path, key=read_key(key))
    log.event("event")
    log.close(PATIENCE_S)

    assert main(["audit", "verify", str(path), "--key-file", str(key)]) == 0

    words = (
        f"warning: --key-file {key} can be read or written by everybody on this machine, any of whom may "
        f"have made up lines that hold; `chmod o-rw` it, and have the log go on in a new file with a new "
        f"key\n"
    )
    assert capsys.readouterr().err == (words if warned else "")


def test_the_command_tells_a_good_log_from_one_that_was_tampered_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, path = tmp_path / "key", tmp_path / "log" / "audit.jsonl"
    key.write_bytes(b"k" * 32)
    log = opened(path, key=read_key(key))
    for number in range(3):
        log.event("event", number=number)
    log.close(PATIENCE_S)
    verify = ["audit", "verify", str(path), "--key-file", str(key)]

    assert main([*verify, "--expect-last", log.last.hash]) == 0
    assert capsys.readouterr().out == (
        f"lines that hold: 3, files: 1\n  last   seq 3, hash {log.last.hash}\n"
    )
    assert main([*verify, "--expect-last", "0" * 64]) == 0  # before the first line: nothing was cut off
    assert main([*verify, "--expect-last", "1" * 64]) == 3
    assert "cut off at the end" in capsys.readouterr().out
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2] + b'{"seq"')
    assert main(verify) == 3
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"BROKEN at {path}, line 2: seq 3 does not follow seq 1: lines were removed, put in or moved",
        "before it, lines that hold: 1, files: 1",
    ]
    path.write_bytes(b"".join(lines) + b'{"seq"')
    assert main(verify) == 0
    assert "6 bytes of an unfinished line" in capsys.readouterr().out
    assert main(["audit", "verify", str(tmp_path / "nowhere")]) == 2
    assert "there is no audit log" in capsys.readouterr().err


def test_a_log_that_is_put_aside_while_it_is_verified_was_not_tampered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audit.jsonl"
    ledger = Ledger(path, max_bytes=600)
    ledger.write([Note("event", 1.0, {}), Note("event", 2.0, {})])
    listings: list[list[Path]] = []

    def verified_while_it_is_written(files: list[Path], **options: object) -> object:
        listings.append(files)
        if len(listings) == 1:
            ledger.write([Note("event", 3.0, {}) for _ in range(3)])
        return verify_log(files, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("guard.audit.verify.verify_log", verified_while_it_is_written)

    assert main(["audit", "verify", str(path)]) == 0
    assert [len(files) for files in listings] == [1, 3]
    assert "lines that hold: 5, files: 3" in capsys.readouterr().out
    ledger.close()
