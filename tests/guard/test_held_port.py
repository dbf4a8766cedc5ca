"""A port held for workers is theirs, and nobody else's."""

from __future__ import annotations

import select
import socket

import pytest

from guard.errors import SettingsError
from guard.rpc.held_port import HeldPort
from tests.serving import PATIENCE_S


def worker_listening(port: int) -> socket.socket:
    """Listen as a worker does."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen()
    return listening


def test_workers_share_it_and_every_connection_comes_to_one_of_them() -> None:
    with (
        HeldPort("127.0.0.1", 0) as held,
        worker_listening(held.number) as one,
        worker_listening(held.number) as other,
    ):
        callers = [socket.create_connection(("127.0.0.1", held.number)) for _ in range(20)]
        for _ in callers:
            came, _, _ = select.select([one, other], [], [], PATIENCE_S)
            came[0].accept()[0].close()
        for caller in callers:
            caller.close()


def test_a_port_that_somebody_has_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on port {port} .*choose another"):
            HeldPort("127.0.0.1", port)


def test_another_guards_workers_are_somebody_too() -> None:
    with HeldPort("127.0.0.1", 0) as held:
        with pytest.raises(SettingsError, match="choose another"):
            HeldPort("127.0.0.1", held.number)
        worker = worker_listening(held.number)
    with worker, pytest.raises(SettingsError, match="choose another"):
        HeldPort("127.0.0.1", held.number)


def test_a_port_that_was_let_go_is_free() -> None:
    with HeldPort("127.0.0.1", 0) as held:
        number = held.number
    with HeldPort("127.0.0.1", number) as again:
        assert again.number == number
