"""The ``guard.admin.v1`` service: decode, ask the control room, encode."""

# ruff: noqa: N802  the protocol names the methods

from __future__ import annotations

from guard.control.api import Control
from guard.errors import InvalidRequestError
from guard.rpc.access import AdminContext, actor_of
from guard.rpc.admin_codec import (
    checked_digest,
    checked_share,
    checked_version,
    encode_canary,
    encode_report,
    encode_statuses,
)
from guard.rpc.outcome import OnRpc, answering, ignore_rpc
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.pb import guard_admin_pb2_grpc as pb_grpc

__all__ = ["AdminServicer"]


class AdminServicer(pb_grpc.GuardAdminServicer):
    """Serves ``guard.admin.v1.GuardAdmin`` from a control room.

    Args:
        control: Does it, to the end, whether or not the caller still waits.
        on_rpc: Called once for each finished call, with the model as it was asked for.
    """

    def __init__(self, control: Control, *, on_rpc: OnRpc = ignore_rpc) -> None:
        self._control = control
        self._on_rpc = on_rpc

    async def Status(self, request: pb.StatusRequest, context: AdminContext) -> pb.StatusResponse:
        """Return what is known of one model, or of all."""
        async with answering(context, "Status", self._on_rpc, request.model):
            return encode_statuses(self._control.status(request.model))

    async def Swap(self, request: pb.SwapRequest, context: AdminContext) -> pb.SwapReport:
        """Serve a version."""
        async with answering(context, "Swap", self._on_rpc, request.model):
            version, digest = checked_version(request.version), checked_digest(request.digest)
            report = await self._control.swap(request.model, version, digest=digest, actor=actor_of(context))
            return encode_report(report)

    async def Rollback(self, request: pb.RollbackRequest, context: AdminContext) -> pb.SwapReport:
        """Serve the version that was served before."""
        async with answering(context, "Rollback", self._on_rpc, request.model):
            report = await self._control.rollback(request.model, actor=actor_of(context))
            return encode_report(report)

    async def StartCanary(self, request: pb.StartCanaryRequest, context: AdminContext) -> pb.CanaryStatus:
        """Let a candidate answer a share of the requests."""
        async with answering(context, "StartCanary", self._on_rpc, request.model):
            version, share = _named(checked_version(request.version)), checked_share(request.share)
            canary = await self._control.start_canary(
                request.model, version, share=share, actor=actor_of(context)
            )
            return encode_canary(canary)

    async def Promote(self, request: pb.PromoteRequest, context: AdminContext) -> pb.SwapReport:
        """Serve the candidate that is being tried."""
        async with answering(context, "Promote", self._on_rpc, request.model):
            report = await self._control.promote(request.model, actor=actor_of(context))
            return encode_report(report)

    async def StopCanary(self, request: pb.StopCanaryRequest, context: AdminContext) -> pb.CanaryStatus:
        """Take the candidate off the traffic."""
        async with answering(context, "StopCanary", self._on_rpc, request.model):
            canary = await self._control.stop_canary(request.model, actor=actor_of(context))
            return encode_canary(canary)


def _named(version: str) -> str:
    """Refuse to guess which candidate is meant."""
    if not version:
        raise InvalidRequestError("version: expected the version to try, got none; name one")
    return version
