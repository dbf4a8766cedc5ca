"""The admin face: a gRPC server of its own, on doors of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc

from guard.control.api import Control
from guard.rpc.access import Access, OnEvent, TokenKeeper, ignore_event
from guard.rpc.admin import AdminServicer
from guard.rpc.held_port import HeldPort
from guard.rpc.interceptors import Doorkeeper
from guard.rpc.listening import open_port, open_socket
from guard.rpc.outcome import OnRpc, ignore_rpc
from guard.rpc.pb.guard_admin_pb2_grpc import add_GuardAdminServicer_to_server
from guard.rpc.reception import CALL, Reception
from guard.rpc.repository_servicer import RepositoryServicer, add_repository_servicer
from guard.rpc.unix_socket import remove_socket, take_place_of_a_dead_one

__all__ = ["AdminServer"]

_MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_MAX_METHOD_CHARACTERS: Final = 200
_ADVICE: Final = (
    "this is the admin port: guard.admin.v1 and V2's repository calls; inference has a port of its own"
)


class AdminServer:
    """Serves a control room to those who are let in.

    Args:
        access: Where, and what is asked of them; read and checked here, so that a wrong setting is told
            before a model is loaded.
        on_rpc: Called once for each finished call, and for each that was turned away.
        on_event: Told of each finished call (:data:`~guard.rpc.reception.CALL`), and from time to time how
            many were turned away (:data:`~guard.rpc.access.DENIED`).

    Attributes:
        port: The TCP port bound, once started; None where there is none.

    Raises:
        SettingsError: If the access would be open to whoever knocks, or a file is not what it has to be.
    """

    def __init__(
        self, access: Access, *, on_rpc: OnRpc = ignore_rpc, on_event: OnEvent = ignore_event
    ) -> None:
        access.check()
        self._access = access
        self._on_rpc = on_rpc
        self._on_event = on_event
        self._token = access.token()
        self._credentials = access.credentials()
        self._token_keeper = (
            None if self._token is None else TokenKeeper(self._token, on_rpc=on_rpc, on_event=on_event)
        )
        self._servers: list[Any] = []
        self._inode = 0
        self._held: HeldPort | None = None
        self.port: int | None = None

    def hold(self) -> None:
        """Take the port until :meth:`start`, without listening; look whether the socket's place is free.

        Raises:
            SettingsError: If one of them is taken.
        """
        if self._access.port:
            self._held = HeldPort(self._access.host, self._access.port, "admin_port")
        if self._access.socket is not None:
            take_place_of_a_dead_one(self._access.socket, "admin_socket")

    def let_go(self) -> None:
        """Give the port back, if it is still held."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    async def start(self, control: Control, *services: Callable[[Any], None]) -> None:
        """Open the doors there are; without any, do nothing.

        Each has a server of its own, so that calls at the port do not fill the socket's room.

        Args:
            control: Does what is asked.
            services: Add what else is to be served there to a gRPC server.

        Raises:
            SettingsError: If one of them is taken.
        """
        if self._access.port is not None:
            self.let_go()
            self.port = open_port(
                self._add_server(control),
                self._access.host,
                self._access.port,
                self._credentials,
                "'admin_port', 'admin_host'",
            )
        if self._access.socket is not None:
            self._inode = open_socket(
                self._add_server(control), self._access.socket, "admin_socket", group=False
            )
        for server in self._servers:
            for add in services:
                add(server)
            await server.start()

    async def stop(self) -> None:
        """Close the doors. An operation that was begun is the control room's; nobody hears of its end."""
        for server in self._servers:
            await server.stop(None)
        if self._token_keeper is not None:
            self._token_keeper.tell()
        if self._access.socket is not None and self._inode:
            remove_socket(self._access.socket, self._inode)

    def _add_server(self, control: Control) -> Any:
        server = grpc.aio.server(  # without a limit of its own, which would count who is turned away too
            interceptors=self._interceptors(),
            options=[
                # Twice the limit: up to there the guard refuses by itself, and tells of it.
                ("grpc.max_receive_message_length", 2 * _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ],
        )
        reception = Reception(on_rpc=self._on_rpc, on_event=self._on_event)
        admin = AdminServicer(control, reception)
        add_GuardAdminServicer_to_server(admin, server)  # type: ignore[no-untyped-call]
        add_repository_servicer(RepositoryServicer(control, reception), server)
        self._servers.append(server)
        return server

    def _interceptors(self) -> list[Any]:
        doorkeeper = Doorkeeper(max_message_bytes=_MAX_MESSAGE_BYTES, on_rpc=self._refused, advice=_ADVICE)
        return [doorkeeper] if self._token_keeper is None else [self._token_keeper, doorkeeper]

    def _refused(self, method: str, model: str, code: str, seconds: float) -> None:
        """Count a call that reached no method, and tell of it; who asked is not known there."""
        self._on_rpc(method, model, code, seconds)
        shown = method[:_MAX_METHOD_CHARACTERS]
        self._on_event(CALL, {"method": shown, "model": model, "actor": "", "code": code})
