"""A unix socket that only those can reach who are meant to, from its first moment on."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from guard.errors import SettingsError

__all__ = ["address_of_socket", "files_for", "remove_socket", "take_place_of_a_dead_one"]

_ONLY_THE_OWNER: Final = 0o177
_OWNER_AND_GROUP: Final = 0o117


def address_of_socket(path: Path) -> str:
    """Return a socket's path as gRPC takes it.

    Examples:
        >>> address_of_socket(Path("/run/my guard/admin.sock"))
        'unix:/run/my%20guard/admin.sock'
    """
    return f"unix:{quote(str(path.absolute()))}"


@contextmanager
def files_for(*, group: bool) -> Iterator[None]:
    """Have every file made meanwhile be the owner's alone, or the group's too.

    gRPC cannot be told the mode of a socket.
    """
    before = os.umask(_OWNER_AND_GROUP if group else _ONLY_THE_OWNER)
    try:
        yield
    finally:
        os.umask(before)


def take_place_of_a_dead_one(path: Path, setting: str) -> None:
    """Make room for a socket: a process that was killed leaves its own behind, which answers nobody.

    gRPC would take the place of a living one just as well, and without a word.

    Args:
        path: Where the socket is to be.
        setting: What it is called where it is set.

    Raises:
        SettingsError: If something else is there, or a socket that somebody listens on.
    """
    if not path.absolute().parent.is_dir():
        raise SettingsError(
            f"{setting} {path}: its directory is not there; make it, for the guard's user only"
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"{setting} {path} is there and is no socket; choose another path, or remove it")
    if _is_alive(path):
        raise SettingsError(
            f"{setting} {path} belongs to a process that runs; stop it, or choose another path"
        )
    path.unlink()


def remove_socket(path: Path, inode: int) -> None:
    """Remove a socket, if it is still the one that was made here."""
    with suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(1.0)
        try:
            knock.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # not for us to know, so not for us to take
            return True
    return True
