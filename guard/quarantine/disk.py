"""The folder: ``<folder>/<model>/<id>.npy``, and ``<id>.json``, which comes last and makes an item whole.

Whatever else lies there is never opened as anything but a plain file of bounded size.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from guard.quarantine.item import ITEM_ID, ItemRecord, folder_of
from guard.quarantine.shelf import Place

__all__ = [
    "DIRECTORY_MODE",
    "FILE_MODE",
    "MAX_RECORD_BYTES",
    "Listing",
    "draft_of",
    "image_path",
    "list_folder",
    "model_folders",
    "read_plain",
    "read_record",
    "record_path",
    "remove_file",
    "write_at_once",
    "write_plain",
]

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
MAX_RECORD_BYTES: Final = 64 * 1024
_DRAFT: Final = ".writing-"


@dataclass
class Listing:
    """The names in a model's folder.

    Attributes:
        ids: Of items that are whole.
        leftovers: Files of items that were not finished, as a crash leaves them.
        foreign: Names that no guard gave.
    """

    ids: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def image_path(root: Path, place: Place) -> str:
    """Return the path of an item's image."""
    return f"{root}/{place.folder}/{place.id}.npy"


def record_path(root: Path, place: Place) -> str:
    """Return the path of an item's record."""
    return f"{root}/{place.folder}/{place.id}.json"


def draft_of(path: str) -> str:
    """Return the name under which a file is written before it gets its own."""
    folder, name = os.path.split(path)
    return f"{folder}/{_DRAFT}{name}"


def remove_file(path: str) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  a Path for each of thousands takes longer than the unlinking


def model_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of the models, by name; a link is none."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    yield from (root / name for name in names if not name.startswith("."))


def list_folder(folder: Path) -> Listing:
    """Return what is in a model's folder."""
    with os.scandir(folder) as entries:
        names = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    listing = Listing()
    for name, plain in sorted(names.items()):
        stem, _, ending = name.partition(".")
        ours = plain and ITEM_ID.fullmatch(stem) is not None
        if plain and name.startswith(_DRAFT):
            listing.leftovers.append(name)
        elif ours and ending == "json":
            listing.ids.append(stem)
        elif not ours or ending != "npy":
            listing.foreign.append(name)
        elif f"{stem}.json" not in names:
            listing.leftovers.append(name)
    return listing


def read_record(root: Path, place: Place) -> tuple[ItemRecord, int]:
    """Return an item's record and the bytes of its file.

    Raises:
        OSError: If it cannot be read; FileNotFoundError if it is gone.
        ValueError: If it is no record, or one of another item.
    """
    data = read_plain(record_path(root, place), MAX_RECORD_BYTES)
    try:
        record = ItemRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise ValueError(f"{record_path(root, place)}: {field}: {first['msg']}") from error
    if Place(record.id, folder_of(record.model)) != place:
        raise ValueError(f"{record_path(root, place)} is the record of another item, {record.id!r}")
    return record, len(data)


def read_plain(path: str | Path, limit: int) -> bytes:
    """Return the content of a plain file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is a link, a pipe or the like, or longer than ``limit`` bytes.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a link; expected a plain file") from error
        raise
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no plain file")
        if status.st_size > limit:
            raise ValueError(f"{path} has {status.st_size} bytes, more than {limit}")
        return stream.read(limit)


def write_plain(path: str, data: bytes) -> None:
    """Write a new file.

    Raises:
        OSError: If it cannot be written, or is there already; nothing is left of it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, FILE_MODE)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        remove_file(path)
        raise
    finally:
        os.close(file)


def write_at_once(path: str, data: bytes) -> None:
    """Write a file, new or not, in one step: it is there whole, or as it was.

    Raises:
        OSError: If it cannot be written; nothing is changed.
    """
    draft = draft_of(path)
    remove_file(draft)
    write_plain(draft, data)
    try:
        os.rename(draft, path)  # noqa: PTH104
    except OSError:
        remove_file(draft)
        raise
