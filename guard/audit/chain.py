"""Theory of operation: a line of the audit log, and what makes an edit of it show.

A line is one JSON object without white space, in ASCII:
``{"seq":7,"at":"2026-01-31T09:00:00.000Z","kind":"verdict",…,"prev":"<64 hex>","hash":"<64 hex>"}``.

- ``hash`` is the SHA-256 of the line's bytes without ``,"hash":"…"``, closing brace included; with a key,
  their HMAC-SHA256, so that whoever can write the file cannot make up a line.
- ``prev`` is the ``hash`` of the line before, across files; 64 zeros in the first. ``seq`` counts from 1.

So a line that was edited no longer has its hash, and after one that was removed, put in or moved the next
does not name its predecessor. What is cut off at the end leaves no mark in what remains: compare the last
``seq`` and ``hash`` with those known elsewhere (the guard logs them when it opens and closes the file).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["MAX_LINE_BYTES", "START", "BrokenLineError", "Entry", "Link", "line_after", "parse_line"]

MAX_LINE_BYTES: Final = 64 * 1024
"""No line that the guard writes is longer."""

_MAX_TEXT: Final = 512
_MAX_MEMBERS: Final = 64
_MAX_DEPTH: Final = 3
_OWN: Final = frozenset({"seq", "at", "kind", "prev", "hash"})
_LINE: Final = re.compile(rb'(\{.*),"hash":"([0-9a-f]{64})"\}', re.DOTALL)


class BrokenLineError(ValueError):
    """A line is not one that the guard wrote; says why."""


@dataclass(frozen=True)
class Link:
    """Where the chain stands: number and hash of a line."""

    seq: int
    hash: str


START: Final = Link(0, "0" * 64)
"""Before the first line."""


@dataclass(frozen=True)
class Entry:
    """A line that was read.

    Attributes:
        link: Its number and hash.
        prev: Hash of the line before, as it says.
        kind: What it tells of.
        at: When, ISO 8601, UTC.
        fields: The rest.
    """

    link: Link
    prev: str
    kind: str
    at: str
    fields: Mapping[str, Any]


def line_after(
    last: Link, kind: str, at: float, fields: Mapping[str, object], key: bytes | None = None
) -> tuple[bytes, Link]:
    """Return the line that follows ``last``, with its end, and where the chain stands then.

    Args:
        last: The line before.
        kind: What it tells of.
        at: When, seconds since the epoch.
        fields: Whatever else there is to say. Long texts are cut, NaN becomes null, and what JSON does not
            know becomes text; a field that is named like one of the line's own gets ``field_`` before it.
        key: Of the HMAC; None for a plain hash.
    """
    said = {f"field_{name}" if name in _OWN else name: _plain(value) for name, value in fields.items()}
    body = _body(last, kind, at, said)
    if len(body) > MAX_LINE_BYTES - 100:
        body = _body(last, kind, at, {"left_out": f"{len(body)} bytes, too long for a line"})
    link = Link(last.seq + 1, _seal(body, key))
    return b'%s,"hash":"%s"}\n' % (body[:-1], link.hash.encode()), link


def parse_line(line: bytes, key: bytes | None = None) -> Entry:
    """Read a line, without its end, and check its hash.

    Raises:
        BrokenLineError: If it is not a line that the guard wrote with this key.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise BrokenLineError(f"it is no line of an audit log: {_shown(line)}")
    body, found = match[1] + b"}", match[2].decode()
    if not hmac.compare_digest(_seal(body, key), found):
        raise BrokenLineError("its hash is not that of its content: it was edited, or made with another key")
    record = _object(body)
    own = {name: record.pop(name, None) for name in ("seq", "at", "kind", "prev")}
    match own:
        case {"seq": int(seq), "at": str(at), "kind": str(kind), "prev": str(prev)}:
            return Entry(Link(seq, found), prev, kind, at, record)
    raise BrokenLineError("it lacks seq, at, kind or prev: another program wrote it")


def _body(last: Link, kind: str, at: float, fields: Mapping[str, object]) -> bytes:
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"seq": last.seq + 1, "at": moment, "kind": kind, **fields, "prev": last.hash}
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii")


def _seal(body: bytes, key: bytes | None) -> str:
    if key is None:
        return hashlib.sha256(body).hexdigest()
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _object(body: bytes) -> dict[str, Any]:
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(f"it is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise BrokenLineError("it is no JSON object")
    return record


def _plain(value: object, depth: int = 0) -> object:
    """Return what JSON can hold of a value, bounded."""
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)[:_MAX_TEXT]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        members = list(value.items())[:_MAX_MEMBERS]
        return {str(name)[:_MAX_TEXT]: _plain(member, depth + 1) for name, member in members}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return [_plain(member, depth + 1) for member in value[:_MAX_MEMBERS]]
    text = str(value)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _shown(line: bytes) -> str:
    return repr(line[:60])[1:] + ("…" if len(line) > 60 else "")
