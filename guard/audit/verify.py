"""Hold an audit log against its own chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guard.audit.chain import MAX_LINE_BYTES, START, BrokenLineError, Link, parse_line

__all__ = ["Break", "Verified", "verify_log"]


@dataclass(frozen=True)
class Break:
    """The first line at which a log is not what the guard wrote.

    Attributes:
        file: Where.
        line: Its number in the file, from 1.
        why: What is wrong.
    """

    file: Path
    line: int
    why: str


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        lines: Lines that hold, in all files.
        last: The last of them; compare it with what is known elsewhere, as lines cut off at the end leave
            no mark.
        broken: The first line that does not; None if all do.
        unfinished_bytes: After the last line, as a server that is writing or was killed leaves them; it
            writes a record of kind ``recovered`` over them when it starts again.
        gaps: Records lost for want of room, as the log itself says.
    """

    lines: int
    last: Link
    broken: Break | None
    unfinished_bytes: int
    gaps: int


def verify_log(
    files: Sequence[Path],
    *,
    key: bytes | None = None,
    start: str | None = None,
    expect_last: str | None = None,
) -> Verified:
    """Check every line of a log.

    Args:
        files: In the order of the chain; at least one.
        key: That the log was written with; None for plain hashes.
        start: Hash that the first line must name as its predecessor's, where the files before were put
            elsewhere; None for a log that is whole.
        expect_last: Hash that must be among the lines, such as that of the last line when it was last
            verified: else the log was cut off before it.
    """
    walk = _Walk(key, START if start is None else Link(-1, start))
    met = expect_last is None or expect_last == walk.last.hash
    broken = None
    file, number = files[-1], 0
    for file, number, line in _lines(files):
        if not line.endswith(b"\n") and file == files[-1] and len(line) <= MAX_LINE_BYTES:
            walk.unfinished_bytes = len(line)
            break
        why = walk.step(line)
        if why:
            broken = Break(file, number, why)
            break
        met = met or walk.last.hash == expect_last
    if broken is None and not met:
        why = f"no line has the hash that was expected, {expect_last}: lines were cut off at the end"
        broken = Break(file, number, why)
    return Verified(walk.lines, walk.last, broken, walk.unfinished_bytes, walk.gaps)


def _lines(files: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield each line with its end, but no more of it than a line may have."""
    for path in files:
        with path.open("rb") as file:
            yield from ((path, number, line) for number, line in enumerate(_bounded(file), 1))


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


class _Walk:
    """Goes along the chain; counts."""

    def __init__(self, key: bytes | None, last: Link) -> None:
        self._key = key
        self.last = last
        self.lines = 0
        self.gaps = 0
        self.unfinished_bytes = 0

    def step(self, line: bytes) -> str:
        """Take the next line; return what is wrong with it."""
        if not line.endswith(b"\n"):
            return "it is longer than any that the guard writes, or has no end"
        try:
            entry = parse_line(line[:-1], self._key)
        except BrokenLineError as error:
            return str(error)
        if entry.prev != self.last.hash:
            return self._misplaced(entry.link.seq, entry.prev)
        if self.last.seq >= 0 and entry.link.seq != self.last.seq + 1:
            return f"expected seq {self.last.seq + 1}, got {entry.link.seq}"
        if entry.kind == "gap" and isinstance(lost := entry.fields.get("lost"), int):
            self.gaps += lost
        self.last = entry.link
        self.lines += 1
        return ""

    def _misplaced(self, seq: int, prev: str) -> str:
        if self.lines:
            return f"seq {seq} does not follow seq {self.last.seq}: lines were removed, put in or moved"
        return (
            f"the log begins with seq {seq}, whose predecessor has the hash {prev}, not {self.last.hash}: "
            f"lines before it are missing; if they were put elsewhere, give --from {prev}"
        )
