"""Keeps items in a folder within its bounds; several processes may share the folder.

Each holds the folder's lock while it writes and takes away, and leaves a mark there when it did. Who finds
another mark than its own looks again what there is, so the bounds hold for the folder, not for each process.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from guard.errors import SettingsError
from guard.incidents import Incident
from guard.metrics_catalogue import DropReason
from guard.quarantine.client import client_key, hashed_client
from guard.quarantine.disk import (
    DIRECTORY_MODE,
    FILE_MODE,
    image_path,
    list_folder,
    model_folders,
    read_record,
    record_path,
    remove_file,
    write_at_once,
    write_plain,
)
from guard.quarantine.item import ItemRecord, folder_of, new_id, short_text
from guard.quarantine.shelf import Bounds, Place, Shelf, Stored

__all__ = ["Store"]

_log = logging.getLogger(__name__)

_MARK_BYTES = 16
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMED = 5


class Store:
    """A quarantine folder, open; not for use by two threads at a time.

    Args:
        root: Made, with mode 0700, if it is not there.
        bounds: How much is kept.

    Raises:
        SettingsError: If the folder cannot be used.
    """

    def __init__(self, root: Path, bounds: Bounds) -> None:
        self._root = root
        self._bounds = bounds
        self._shelf = Shelf()
        self._folders: set[str] = set()
        self._mark = b""
        self._marked = False
        try:
            root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock = os.open(root / ".lock", _LOCK_FLAGS, FILE_MODE)
            try:
                with self._alone():
                    self._key = client_key(root)
                    self._report_damage(*self._look())
            except BaseException:
                os.close(self._lock)
                raise
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"quarantine folder {root} cannot be used ({error}); allow it, or set 'quarantine_dir' "
                f"otherwise"
            ) from error

    @property
    def items(self) -> int:
        """Items in the folder, as last seen."""
        return len(self._shelf)

    @property
    def held_bytes(self) -> int:
        """Bytes of their files."""
        return self._shelf.bytes

    def keep(self, incidents: Sequence[Incident], now: float) -> Counter[DropReason]:
        """Keep the images of incidents, the oldest first out; return how many were not, by reason.

        Args:
            incidents: In the order of their times.
            now: Seconds since the epoch.

        Raises:
            OSError: If the folder itself cannot be used any more.
        """
        dropped: Counter[DropReason] = Counter()
        repeats: dict[Place, list[Incident]] = {}
        with self._alone():
            for incident in incidents:
                try:
                    known = self._keep_new(incident)
                except _TooLargeError:
                    dropped[DropReason.TOO_LARGE] += 1
                except OSError as error:
                    dropped[DropReason.UNWRITABLE] += 1
                    _log.debug("not kept in quarantine", extra={"why": str(error)})
                else:
                    if known is not None:
                        repeats.setdefault(known, []).append(incident)
                self._make_room(now)
            self._make_room(now)
            for place, again in repeats.items():
                dropped[DropReason.UNWRITABLE] += self._count_again(place, again)
        return +dropped

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, knowing what is there."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._marked = False
        try:
            if not self._mark or os.pread(self._lock, _MARK_BYTES, 0) != self._mark:
                self._look()
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _leave_mark(self) -> None:
        """Let the others know, before anything is changed, that they have to look again."""
        if self._marked:
            return
        self._mark, self._marked = secrets.token_bytes(_MARK_BYTES), True
        try:
            os.pwrite(self._lock, self._mark, 0)
        except OSError:  # a full disk, and no mark yet: then we look again each time, and so does everyone
            self._mark = b""

    def _look(self) -> tuple[list[str], list[str]]:
        """See what is in the folder; return what is damaged and what is foreign."""
        before, self._shelf = self._shelf, Shelf()
        damaged: list[str] = []
        foreign: list[str] = []
        for folder in model_folders(self._root):
            try:
                listing = list_folder(folder)
            except OSError:
                foreign.append(f"{folder.name}/")
                continue
            foreign += [f"{folder.name}/{name}" for name in listing.foreign]
            for name in listing.leftovers:
                (folder / name).unlink(missing_ok=True)
            for place in (Place(id_, folder.name) for id_ in listing.ids):
                try:
                    self._shelf.add(before.get(place) or self._stored(place))
                except FileNotFoundError:
                    continue
                except (OSError, ValueError):
                    damaged.append(f"{folder.name}/{place.id}.json")
        self._mark = os.pread(self._lock, _MARK_BYTES, 0)
        return damaged, foreign

    def _stored(self, place: Place) -> Stored:
        record, size = read_record(self._root, place)
        return Stored(place, record.at, record.sha256, record.bytes + size)

    def _report_damage(self, damaged: list[str], foreign: list[str]) -> None:
        for what, names in (("damaged", damaged), ("foreign", foreign)):
            if names:
                _log.warning(
                    f"passed over in quarantine: {what} files",
                    extra={"path": str(self._root), "files": len(names), "some": sorted(names)[:_NAMED]},
                )

    def _keep_new(self, incident: Incident) -> Place | None:
        """Write an item, unless its image is here already; return where in that case."""
        folder = folder_of(short_text(incident.model))
        image = _npy(incident.image)
        sha256 = hashlib.sha256(image).hexdigest()
        known = self._shelf.same_image(folder, sha256)
        if known is not None:
            return known
        place = Place(new_id(incident.at), folder)
        record = self._record_of(incident, place, image, sha256).model_dump_json().encode()
        if len(image) + len(record) > self._bounds.max_bytes:
            raise _TooLargeError
        self._leave_mark()
        self._write(place, image, record)
        self._shelf.add(Stored(place, incident.at, sha256, len(image) + len(record)))
        return None

    def _write(self, place: Place, image: bytes, record: bytes) -> None:
        if place.folder not in self._folders:
            self._make_folder(self._root / place.folder)
        self._folders.add(place.folder)
        try:
            write_plain(image_path(self._root, place), image)
            write_at_once(record_path(self._root, place), record)
        except OSError:
            self._folders.clear()  # in case it was one of them that went away
            remove_file(image_path(self._root, place))
            raise

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=DIRECTORY_MODE)
        except FileExistsError:
            if folder.is_symlink():  # what lies behind it is not counted at the next start
                raise
            return
        folder.chmod(DIRECTORY_MODE)  # the umask, which the whole process shares, may be another just now

    def _make_room(self, now: float) -> None:
        while place := self._shelf.surplus(self._bounds, now):
            self._leave_mark()
            remove_file(record_path(self._root, place))
            remove_file(image_path(self._root, place))
            self._shelf.remove(place)

    def _count_again(self, place: Place, again: Sequence[Incident]) -> int:
        """Add to the count of an item; return how many could not be added."""
        stored = self._shelf.get(place)
        if stored is None:  # it had to go while the others of this batch came in
            return 0
        self._leave_mark()
        try:
            record, size = read_record(self._root, place)
            last_at = max(record.last_at, *(incident.at for incident in again))
            changed = record.model_copy(update={"count": record.count + len(again), "last_at": last_at})
            data = changed.model_dump_json().encode()
            write_at_once(record_path(self._root, place), data)
        except FileNotFoundError:  # taken away by hand
            self._shelf.remove(place)
            return len(again)
        except (OSError, ValueError):
            return len(again)
        self._shelf.add(Stored(place, stored.at, stored.sha256, stored.bytes + len(data) - size))
        return 0

    def _record_of(self, incident: Incident, place: Place, image: bytes, sha256: str) -> ItemRecord:
        return ItemRecord(
            id=place.id,
            model=short_text(incident.model),
            version=incident.version,
            digest=incident.digest,
            at=incident.at,
            last_at=incident.at,
            row=incident.row,
            request_id=short_text(incident.request_id),
            client=hashed_client(self._key, incident.client),
            verdict=incident.verdict,
            tier=incident.tier,
            policy=incident.policy,
            score=incident.score,
            p_value=incident.p_value,
            passes=incident.passes,
            label=incident.label,
            layout=incident.layout,
            low=incident.low,
            high=incident.high,
            dtype=incident.image.dtype.str,
            shape=incident.image.shape,
            sha256=sha256,
            bytes=len(image),
        )


def _npy(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(image), allow_pickle=False)
    return buffer.getvalue()


class _TooLargeError(Exception):
    """An item is larger than all that may be kept."""
