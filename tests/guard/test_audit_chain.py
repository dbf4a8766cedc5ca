"""An audit log is what the guard wrote, or it shows: every kind of tampering is found."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from guard.audit.audit_command import _hash
from guard.audit.chain import START, BrokenLineError, Link, line_after, parse_line
from guard.audit.files import files_of
from guard.audit.ledger import Ledger, Note
from guard.audit.verify import Verified, verify_log
from guard.errors import MissingFileError, SettingsError

KEY = b"k" * 32
AT = 1_700_000_000.1234


def lines_of(count: int, key: bytes | None = None, start: Link = START) -> list[bytes]:
    lines, last = [], start
    for number in range(count):
        line, last = line_after(last, "verdict", AT + number, {"row": number, "request_id": "r"}, key)
        lines.append(line)
    return lines


def verified(folder: Path, content: bytes, **options: object) -> Verified:
    path = folder / "audit.jsonl"
    path.write_bytes(content)
    return verify_log([path], **options)  # type: ignore[arg-type]


def test_a_line_says_what_it_hashes_and_names_the_line_before() -> None:
    first, second = lines_of(2)

    record = json.loads(second)
    body = re.sub(rb',"hash":"[0-9a-f]{64}"\}\n$', b"}", second)

    assert list(record) == ["seq", "at", "kind", "row", "request_id", "prev", "hash"]
    assert (record["seq"], record["at"]) == (2, "2023-11-14T22:13:21.123Z")
    assert record["prev"] == json.loads(first)["hash"]
    assert record["hash"] == hashlib.sha256(body).hexdigest()
    assert json.loads(first)["prev"] == "0" * 64
    assert parse_line(second[:-1]).fields == {"row": 1, "request_id": "r"}


def test_a_key_makes_other_hashes_and_is_needed_to_read(tmp_path: Path) -> None:
    content = b"".join(lines_of(3, KEY))

    assert verified(tmp_path, content, key=KEY).broken is None
    for key in (None, b"x" * 32):
        broken = verified(tmp_path, content, key=key).broken
        assert broken is not None
        assert (broken.line, "another key" in broken.why) == (1, True)


def test_whoever_can_write_the_file_cannot_make_a_keyed_chain_up(tmp_path: Path) -> None:
    """Without a key they can: that is what the key is for."""
    made_up = b"".join(lines_of(3))

    assert verified(tmp_path, made_up).broken is None
    assert verified(tmp_path, made_up, key=KEY).broken is not None


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (True, True),
        (2**70, str(2**70)),
        ('"}\n{"seq":1', '"}\n{"seq":1'),
        ("\x00\ud800\u2028", "\x00\ud800\u2028"),
        ("x" * 10_000, "x" * 512 + "…"),
        (("a", 1), ["a", 1]),
        ({"a": {"b": {"c": {"d": 1}}}}, {"a": {"b": {"c": "{'d': 1}"}}}),
        (list(range(1000)), list(range(64))),
        (Path("/x"), "/x"),
        (None, None),
    ],
)
def test_whatever_is_told_becomes_one_bounded_line(value: object, kept: object) -> None:
    line, _ = line_after(START, "event", AT, {"value": value})

    assert line.count(b"\n") == 1
    assert line.isascii()
    assert parse_line(line[:-1]).fields == {"value": kept}


def test_a_field_cannot_pass_itself_off_as_one_of_the_line() -> None:
    line, link = line_after(START, "event", AT, {"seq": 9, "hash": "0" * 64, "prev": "x", "kind": "accept"})

    entry = parse_line(line[:-1])

    assert (entry.link, entry.kind, entry.prev) == (link, "event", START.hash)
    assert entry.fields == {
        "field_seq": 9, "field_hash": "0" * 64, "field_prev": "x", "field_kind": "accept",
    }  # fmt: skip


def test_what_is_too_long_for_a_line_is_left_out_and_said() -> None:
    line, _ = line_after(START, "event", AT, {str(n): ["y" * 512] * 64 for n in range(20)})

    assert "too long" in parse_line(line[:-1]).fields["left_out"]


@pytest.mark.parametrize("line", [b"", b"{}", b"null", b'{"seq":1}', b"\x00" * 100, b'{"a":1,"hash":"zz"}'])
def test_what_the_guard_did_not_write_is_no_line(line: bytes) -> None:
    with pytest.raises(BrokenLineError, match="no line of an audit log"):
        parse_line(line)


@pytest.mark.parametrize("body", [b'{"a"', b"{" * 20_000, b'{"seq":"1"', b'{"seq":1,"at":"x","kind":"y"'])
def test_a_hash_alone_makes_no_line(body: bytes) -> None:
    seal = hashlib.sha256(body + b"}").hexdigest().encode()
    with pytest.raises(BrokenLineError, match=r"no JSON|lacks seq"):
        parse_line(body + b',"hash":"' + seal + b'"}')


CONTENT = lines_of(6)


@settings(max_examples=150)
@given(at=st.integers(0, len(b"".join(CONTENT)) - 1), byte=st.integers(0, 255))
def test_every_edit_of_a_byte_is_found_in_its_line(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    whole = b"".join(CONTENT)
    assume(whole[at] != byte)
    assume(at < len(whole) - 1 or byte == 0)  # without its last line end, the log is unfinished
    edited = whole[:at] + bytes([byte]) + whole[at + 1 :]

    found = verified(tmp_path_factory.mktemp("log"), edited)

    if at == len(whole) - 1:
        assert (found.lines, found.unfinished_bytes > 0) == (5, True)
        return
    where = whole[:at].count(b"\n") + 1
    if found.broken is None:  # the end of the last line was joined to what an editor put there
        assert where == 6
        assert found.unfinished_bytes > 0
    else:
        assert found.broken.line == where
        assert found.lines == where - 1


@settings(max_examples=150)
@given(order=st.lists(st.integers(0, 5), max_size=8), keyed=st.booleans())
def test_lines_removed_put_in_or_moved_are_found_and_only_a_cut_at_the_end_is_not(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], keyed: bool
) -> None:
    lines = lines_of(6, KEY if keyed else None)
    folder = tmp_path_factory.mktemp("log")

    found = verified(folder, b"".join(lines[n] for n in order), key=KEY if keyed else None)

    good = next((n for n, line in enumerate(order) if line != n), len(order))
    assert found.lines == good
    assert (found.broken is None) == (good == len(order))
    if found.broken is not None:
        assert found.broken.line == good + 1


def test_what_is_cut_off_at_the_end_is_found_by_the_hash_that_is_expected(tmp_path: Path) -> None:
    hashes = [json.loads(line)["hash"] for line in CONTENT]

    whole = verified(tmp_path, b"".join(CONTENT), expect_last=hashes[-1])
    grown = verified(tmp_path, b"".join(CONTENT), expect_last=hashes[2])
    cut = verified(tmp_path, b"".join(CONTENT[:4]), expect_last=hashes[-1])

    assert (whole.broken, grown.broken, whole.last) == (None, None, Link(6, hashes[-1]))
    assert cut.broken is not None
    assert (cut.broken.line, "cut off at the end" in cut.broken.why) == (4, True)
    assert verified(tmp_path, b"", expect_last=hashes[0]).broken is not None


def test_a_log_whose_beginning_was_put_elsewhere_is_verified_from_there(tmp_path: Path) -> None:
    rest, before = b"".join(CONTENT[2:]), json.loads(CONTENT[1])["hash"]

    missing = verified(tmp_path, rest).broken

    assert missing is not None
    assert (missing.line, f"--from {before}" in missing.why) == (1, True)
    assert verified(tmp_path, rest, start=before).broken is None
    assert verified(tmp_path, rest, start="1" * 64).broken is not None


def test_a_chain_that_skips_a_number_is_found_even_if_its_hashes_fit(tmp_path: Path) -> None:
    first, link = line_after(START, "a", AT, {})
    third, _ = line_after(Link(2, link.hash), "b", AT, {})

    broken = verified(tmp_path, first + third).broken

    assert broken is not None
    assert broken.why == "expected seq 2, got 3"


def test_the_files_of_a_log_come_in_order_and_no_others(tmp_path: Path) -> None:
    for name in (
        "audit.jsonl",
        "audit-000002.jsonl",
        "audit-000010.jsonl",
        "audit-1.jsonl.gz",
        "audit-x.txt",
    ):
        (tmp_path / name).touch()
    names = ["audit-000002.jsonl", "audit-000010.jsonl", "audit.jsonl"]

    assert [path.name for path in files_of(tmp_path)] == names
    assert [path.name for path in files_of(tmp_path / "audit.jsonl")] == names
    assert [path.name for path in files_of(tmp_path / names[0])] == names[:1]
    (tmp_path / "other.jsonl").touch()
    with pytest.raises(SettingsError, match=r"holds 2 audit logs \(audit.jsonl, other.jsonl\)"):
        files_of(tmp_path)
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "nowhere", "nowhere/audit.jsonl"):
        with pytest.raises(MissingFileError):
            files_of(tmp_path / nothing)


def test_a_log_that_is_named_after_a_day_is_verified_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "audit-20260131.jsonl"
    ledger = Ledger(path, max_bytes=600)
    ledger.write([Note("event", 1.0, {}) for _ in range(6)])
    ledger.close()

    assert len(files_of(path)) > 1
    assert verify_log(files_of(path)).broken is None


def test_a_break_in_a_file_that_is_full_names_that_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "audit.jsonl", max_bytes=300)
    ledger.write([Note("event", AT, {"n": n}) for n in range(9)])
    ledger.close()
    files = files_of(tmp_path)
    assert len(files) == 9
    assert verify_log(files).lines == 9

    content = files[1].read_bytes()
    files[1].write_bytes(content.replace(b'"kind":"event"', b'"kind":"evenT"', 1))
    broken = verify_log(files).broken
    assert broken is not None
    assert (broken.file, broken.line) == (files[1], 1)
    without = verify_log([files[0], *files[2:]]).broken
    assert without is not None
    assert (without.file, without.line) == (files[2], 1)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    assert verify_log(files).broken is not None


def test_a_hash_is_64_hex_digits() -> None:
    assert _hash("a" * 64) == "a" * 64
    for wrong in ("", "a" * 63, "A" * 64, "g" * 64):
        with pytest.raises(Exception, match="64 hex digits"):
            _hash(wrong)
