"""The files of an audit log, written to: the chain goes on where it stood, whatever happened since.

One process writes the file and holds a lock on it. A batch is written, flushed to disk and only then counted
as done: where that fails, the file is cut back to what was done, and the batch can be tried again.
A line torn by a crash is written over by a record that holds it (kind ``recovered``), so that every line of
the file is a link of the chain.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guard.audit.chain import MAX_LINE_BYTES, START, BrokenLineError, Link, line_after, parse_line
from guard.audit.files import finished_files, next_finished
from guard.errors import SettingsError

__all__ = ["Ledger", "Note"]

_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750


@dataclass(frozen=True)
class Note:
    """Something to be written down: what kind of thing, when (seconds since the epoch), and what of it."""

    kind: str
    at: float
    fields: Mapping[str, object]


class Ledger:
    """An audit log, open for writing; not for use by two threads at a time.

    Args:
        path: The file that is written; made, with its folder, if it is not there.
        max_bytes: Size beyond which it is put aside; a line is never parted.
        key: Of the HMAC; None for plain hashes.

    Raises:
        SettingsError: If it cannot be opened, another process writes it, or its last line was not made by
            a guard with this key.
    """

    def __init__(self, path: Path, *, max_bytes: int, key: bytes | None = None) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._key = key
        self._file: int | None = None
        self._size = 0
        self._torn = b""
        self._opened_at = time.time()
        try:
            path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            self._file = self._open()
            self.last = self._find_last(self._file)
        except (OSError, BrokenLineError) as error:
            self.close()
            raise SettingsError(_why_not(path, error)) from error

    def write(self, notes: list[Note]) -> None:
        """Write notes down, taking from the list what is safe on disk.

        Raises:
            OSError: If the rest cannot be written now; the file ends after what was taken.
        """
        if self._torn:
            self._put(*self._rendered([self._recovered()], room=None))
            self._torn = b""
        while notes:
            lines, last = self._rendered(notes, room=self._max_bytes - self._size)
            if not lines:
                self._put_aside()
                continue
            self._put(lines, last)
            del notes[: len(lines)]

    def close(self) -> None:
        """Close the file and give its lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _rendered(self, notes: list[Note], room: int | None) -> tuple[list[bytes], Link]:
        """Return the lines of the first notes, as many as there is room for; of one in an empty file."""
        lines: list[bytes] = []
        last = self.last
        for note in notes:
            line, link = line_after(last, note.kind, note.at, note.fields, self._key)
            if room is not None and len(line) > room and (lines or self._size):
                break
            lines.append(line)
            last, room = link, None if room is None else room - len(line)
        return lines, last

    def _put(self, lines: list[bytes], last: Link) -> None:
        data = b"".join(lines)
        file = self._in_place()
        try:
            view = memoryview(data)
            while view:
                view = view[os.pwrite(file, view, self._size + len(data) - len(view)) :]
            os.ftruncate(
                file, self._size + len(data)
            )  # a torn line may have been longer than what tells of it
            os.fsync(file)
        except OSError:
            if not self._torn:
                with suppress(OSError):  # then the next attempt writes over it
                    os.ftruncate(file, self._size)
            raise
        self._size += len(data)
        self.last = last

    def _put_aside(self) -> None:
        os.ftruncate(self._in_place(), self._size)
        self._path.rename(next_finished(self._path))
        self.close()
        self._size = 0

    def _in_place(self) -> int:
        """Return the file; if it was put aside, or moved or cut by somebody else, go on with what is there.

        In the second case it is the chain that tells of it.
        """
        if self._file is not None and not _is_at(self._file, self._path):
            self.close()
        if self._file is None:
            self._file = self._open()
            self._size = os.fstat(self._file).st_size
        self._size = min(self._size, os.fstat(self._file).st_size)
        return self._file

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self._path, flags, _FILE_MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _flush_folder(self._path.parent)
        except OSError:
            os.close(file)
            raise
        return file

    def _find_last(self, file: int) -> Link:
        size = os.fstat(file).st_size
        tail = _tail(file, size)
        whole, end, self._torn = tail.rpartition(b"\n")
        self._size = size - len(self._torn)
        if end:
            return parse_line(whole.rpartition(b"\n")[2], self._key).link
        return self._last_put_aside()

    def _last_put_aside(self) -> Link:
        full = finished_files(self._path)
        if not full:
            return START
        with full[-1].open("rb") as file:
            *_, line, rest = (b"", b"", *_tail(file.fileno(), full[-1].stat().st_size).split(b"\n"))
        if rest:
            raise BrokenLineError(f"of {full[-1].name}: it was not finished, though another file follows")
        return parse_line(line, self._key).link

    def _recovered(self) -> Note:
        """Return the record of a line that a crash tore, the same each time.

        For it may be written over itself and torn once more, which must not leave half of each.
        """
        fields = {
            "torn_bytes": len(self._torn),
            "torn_sha256": hashlib.sha256(self._torn).hexdigest(),
            "torn": self._torn.decode("latin-1"),
        }
        return Note("recovered", self._opened_at, fields)


def _tail(file: int, size: int) -> bytes:
    """Return the end of a file, from before its last whole line on; all of it if there is none."""
    length = MAX_LINE_BYTES
    while True:
        tail = os.pread(file, length, max(0, size - length))
        if tail.count(b"\n") > 1 or length >= size:
            return tail
        length *= 2


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _why_not(path: Path, error: OSError | BrokenLineError) -> str:
    if isinstance(error, BlockingIOError):
        return (
            f"audit log {path} is being written by another process; give each guard a file of its own with "
            f"the setting 'audit_log'"
        )
    if isinstance(error, OSError):
        return f"audit log {path} cannot be opened ({error.strerror}); allow it, or set 'audit_log' otherwise"
    return (
        f"audit log {path} cannot be continued after its last line: {error}; look at it with "
        f"`guard audit verify`, check 'audit_key_file', or move the files of the log away"
    )


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
