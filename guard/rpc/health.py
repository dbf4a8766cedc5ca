"""``grpc.health.v1``, for Kubernetes' probes and for clients that balance over replicas.

Unlike the servicer that comes with grpcio-health-checking, a watch ends when the server stops: a
client that watches for ever would otherwise hold up every graceful stop until its timeout.
"""

# ruff: noqa: N802  the protocol names the methods

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

from guard.rpc.outcome import Context, OnRpc, answering, ignore_rpc
from guard.rpc.status import UnknownServiceError

__all__ = ["HealthServicer"]

_States = pb.HealthCheckResponse


class HealthServicer(pb_grpc.HealthServicer):  # type: ignore[misc]
    """Says NOT_SERVING until :meth:`set_serving` says otherwise, and again from :meth:`stop` on.

    Args:
        services: Full names of the services spoken for; ``""``, the whole server, is always one.
        on_rpc: Told of each call.
    """

    def __init__(self, services: Iterable[str], *, on_rpc: OnRpc = ignore_rpc) -> None:
        self._services = ("", *services)
        self._on_rpc = on_rpc
        self._status: int = _States.NOT_SERVING
        self._stopped = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Say SERVING, or NOT_SERVING for now; after :meth:`stop` it is NOT_SERVING whatever comes."""
        if not self._stopped:
            self._become(_States.SERVING if serving else _States.NOT_SERVING)

    async def stop(self) -> None:
        """Say NOT_SERVING, and end every watch."""
        self._stopped = True
        self._become(_States.NOT_SERVING)

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Return the status of a service."""
        async with answering(context, "Check", self._on_rpc):
            if request.service not in self._services:
                raise UnknownServiceError(
                    f"service {request.service!r} is not known; expected one of "
                    f"{', '.join(map(repr, self._services))}"
                )
            return pb.HealthCheckResponse(status=self._status)

    async def Watch(self, request: pb.HealthCheckRequest, context: Any) -> None:
        """Send the status of a service, and send it again whenever it changes."""
        async with answering(context, "Watch", self._on_rpc):
            sent: int | None = None
            while not (self._stopped and sent == self._status_of(request.service)):
                await self._news(request.service, sent)
                status = self._status_of(request.service)
                if status != sent:
                    await context.write(pb.HealthCheckResponse(status=status))
                    sent = status

    def _status_of(self, service: str) -> int:
        return self._status if service in self._services else _States.SERVICE_UNKNOWN

    async def _news(self, service: str, sent: int | None) -> None:
        while not self._stopped and self._status_of(service) == sent:
            await self._changed.wait()

    def _become(self, status: int) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()
