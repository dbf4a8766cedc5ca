"""A port held before anybody listens on it: by the parent of workers, or by a guard that loads models.

Who holds it binds it and never listens, so that no connection comes to it. It binds without ``SO_REUSEPORT``
and sets that afterwards: a port that anybody has, another guard with workers included, is refused in the one
call that takes it, and the workers, of the same user, are let in.
"""

from __future__ import annotations

import socket
from types import TracebackType

from guard.errors import SettingsError

__all__ = ["HeldPort"]


class HeldPort:
    """A port held for whoever is to listen on it; a context manager.

    Args:
        host: Address or name that the workers listen on.
        port: 0 for any free one.
        setting: What the port is called where it is set.

    Attributes:
        number: The port held.

    Raises:
        SettingsError: If it is taken, or processes cannot share a port here.
    """

    def __init__(self, host: str, port: int, setting: str = "port") -> None:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise SettingsError("workers: processes cannot share a port on this system; set workers = 1")
        try:
            self._socket = _bound(host, port)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on port {port} of {host} (setting {setting!r}: {error.strerror}); choose "
                f"another"
            ) from error
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let it go."""
        self._socket.close()

    def __enter__(self) -> HeldPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bound(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    held = socket.socket(family, kind, protocol)
    try:
        # With SO_REUSEADDR, connections of a guard that just ended are in nobody's way.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # so that no second parent gets it too
    except BaseException:
        held.close()
        raise
    return held
