"""The data port: the gRPC server that callers send requests to, at a TCP port, a unix socket, or both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from guard.rpc.health import HealthServicer
from guard.rpc.held_port import HeldPort
from guard.rpc.interceptors import Doorkeeper
from guard.rpc.listening import open_port, open_socket
from guard.rpc.outcome import OnRpc
from guard.rpc.pb.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from guard.rpc.server_tls import ServerTls
from guard.rpc.servicer import InferenceServicer
from guard.rpc.unix_socket import remove_socket, take_place_of_a_dead_one

__all__ = ["DataServer", "Doors"]


@dataclass(frozen=True)
class Doors:
    """Where callers come in.

    Attributes:
        host: Address of the TCP port.
        port: TCP port, 0 for any that is free; None for none.
        socket: Path of a unix socket, for the guard's user and group; None for none.
        tls: Of the TCP port.
        shared: Whether other processes of this guard listen on the port too.
    """

    host: str
    port: int | None
    socket: Path | None = None
    tls: ServerTls = field(default_factory=ServerTls)
    shared: bool = False


class DataServer:
    """Opens the doors, and closes them once what came in is finished.

    Args:
        doors: Where; files are read here, so that a wrong setting is told before a model is loaded.
        max_message_bytes: Largest request.
        max_concurrent_requests: Calls taken in at a time, by all doors together.
        on_rpc: Told of each call that reaches no method.

    Attributes:
        port: The TCP port bound, once started; 0 where there is none.

    Raises:
        SettingsError: If a certificate is not what it has to be.
    """

    def __init__(
        self, doors: Doors, *, max_message_bytes: int, max_concurrent_requests: int, on_rpc: OnRpc
    ) -> None:
        doors.tls.check()
        self.port = 0
        self._doors = doors
        self._credentials = doors.tls.credentials()
        self._max_message_bytes = max_message_bytes
        self._max_concurrent_requests = max_concurrent_requests
        self._on_rpc = on_rpc
        self._held: HeldPort | None = None
        self._server: Any = None
        self._servicer: InferenceServicer | None = None
        self._inode = 0

    def hold(self) -> None:
        """Take the port until :meth:`start`, without listening; look whether the socket's place is free.

        Raises:
            SettingsError: If one of them is taken.
        """
        doors = self._doors
        if doors.port and not doors.shared:
            self._held = HeldPort(doors.host, doors.port)
        if doors.socket is not None:
            take_place_of_a_dead_one(doors.socket, "socket")

    async def start(self, servicer: InferenceServicer, health: HealthServicer, *, keep: bool) -> None:
        """Open the doors.

        Args:
            servicer: Answers what is asked of models.
            health: Answers who asks how the guard does.
            keep: Whether requests are kept as they came, for a model server.

        Raises:
            SettingsError: If one of them is taken.
        """
        limit = self._max_message_bytes
        server = grpc.aio.server(
            interceptors=[
                Doorkeeper(
                    max_message_bytes=limit,
                    on_rpc=self._on_rpc,
                    keep=("ModelInfer", "ModelStreamInfer") if keep else (),
                )
            ],
            maximum_concurrent_rpcs=self._max_concurrent_requests,
            options=[
                # Twice the limit: up to there the guard refuses by itself, and counts it.
                ("grpc.max_receive_message_length", min(2 * limit, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),  # what a model server answered, and findings beside it
                ("grpc.so_reuseport", int(self._doors.shared)),
                # A client that is gone without a word gives back its places; gRPC would wait two hours.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        add_HealthServicer_to_server(health, server)
        if self._doors.port is not None:
            self.let_go()
            self.port = open_port(
                server, self._doors.host, self._doors.port, self._credentials, "setting 'port'"
            )
        if self._doors.socket is not None:
            self._inode = open_socket(server, self._doors.socket, "socket", group=True)
        await server.start()
        self._server, self._servicer = server, servicer

    async def stop(self, drain_timeout_s: float) -> None:
        """Take in nothing more, and finish what was accepted."""
        if self._server is not None and self._servicer is not None:
            self._servicer.end_streams()
            await self._server.stop(drain_timeout_s)
        if self._doors.socket is not None and self._inode:
            remove_socket(self._doors.socket, self._inode)

    def let_go(self) -> None:
        """Give the port back, if it is still held."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
