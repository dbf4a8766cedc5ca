"""How a gRPC server of the guard comes to a TCP port or a unix socket, and what is told where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from guard.errors import SettingsError
from guard.rpc.unix_socket import address_of_socket, files_for, take_place_of_a_dead_one

__all__ = ["open_port", "open_socket"]


def open_port(
    server: Any, host: str, port: int, credentials: grpc.ServerCredentials | None, settings: str
) -> int:
    """Have a server listen on a port once it starts; return which.

    Args:
        server: A ``grpc.aio`` server that was not started yet.
        host: Address or name to listen on.
        port: 0 for any free one.
        credentials: For TLS; None for none.
        settings: What port and host are called where they are set, as an error is to say it.

    Raises:
        SettingsError: If it is taken, or there is no such address here.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"  # IPv6
    try:
        if credentials is None:
            bound: int = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on port {port} of {host} ({settings}); choose another") from error
    return bound


def open_socket(server: Any, path: Path, setting: str, *, group: bool) -> int:
    """Have a server listen on a unix socket once it starts; return the socket's inode.

    Args:
        server: A ``grpc.aio`` server that was not started yet.
        path: Where; a socket that a dead process left there is removed.
        setting: What it is called where it is set.
        group: Whether the group of the guard's user may reach it too.

    Raises:
        SettingsError: If the place is taken, or cannot be written to.
    """
    take_place_of_a_dead_one(path, setting)
    try:
        with files_for(group=group):
            server.add_insecure_port(address_of_socket(path))
    except RuntimeError as error:
        raise SettingsError(
            f"cannot listen on {setting} {path}; choose a path of at most 100 bytes that the guard's user "
            f"may write to"
        ) from error
    return path.lstat().st_ino
