"""What was found in an audit log, as it is printed."""

from __future__ import annotations

from collections.abc import Iterator

from guard.audit.verify import Verified

__all__ = ["lines_of"]


def lines_of(found: Verified, files: int) -> Iterator[str]:
    """Yield what is said of a log that was verified, line by line.

    Args:
        found: What was found.
        files: Of the log.
    """
    if found.broken:
        yield f"BROKEN at {found.broken.file}, line {found.broken.line}: {found.broken.why}"
    before = "before it, " if found.broken else ""
    yield f"{before}lines that hold: {found.lines}, files: {files}"
    if found.lines:
        yield f"  last   seq {found.last.seq}, hash {found.last.hash}"
    if found.gaps:
        yield f"  gaps   {found.gaps} records were lost for want of room, as the log says itself"
    if found.unfinished_bytes:
        yield f"  end    {found.unfinished_bytes} bytes of an unfinished line: the server writes it or was"
        yield "         killed while it did; it says so in the log when it starts again"
