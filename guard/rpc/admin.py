"""The ``guard.admin.v1`` service: decode, ask the control room, encode."""

# ruff: noqa: N802  the protocol names the methods

from __future__ import annotations

from guard.control.api import Control
from guard.errors import InvalidRequestError
from guard.rpc.access import AdminContext
from guard.rpc.admin_codec import (
    checked_digest,
    checked_share,
    checked_version,
    encode_canary,
    encode_report,
    encode_statuses,
)
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.pb import guard_admin_pb2_grpc as pb_grpc
from guard.rpc.reception import Reception

__all__ = ["AdminServicer"]


class AdminServicer(pb_grpc.GuardAdminServicer):
    """Serves ``guard.admin.v1.GuardAdmin`` from a control room.

    Args:
        control: Does it, to the end, whether or not the caller still waits.
        reception: Lets calls in and out.
    """

    def __init__(self, control: Control, reception: Reception) -> None:
        self._control = control
        self._reception = reception

    async def Status(self, request: pb.StatusRequest, context: AdminContext) -> pb.StatusResponse:
        """Return what is known of one model, or of all."""
        async with self._reception.call(context, "Status", request.model):
            return encode_statuses(await self._control.status(request.model))

    async def Swap(self, request: pb.SwapRequest, context: AdminContext) -> pb.SwapReport:
        """Serve a version."""
        async with self._reception.call(
            context, "Swap", request.model, version=request.version, digest=request.digest
        ) as actor:
            version, digest = checked_version(request.version), checked_digest(request.digest)
            report = await self._control.swap(request.model, version, digest=digest, actor=actor)
            return encode_report(report)

    async def Rollback(self, request: pb.RollbackRequest, context: AdminContext) -> pb.SwapReport:
        """Serve the version that was served before."""
        async with self._reception.call(context, "Rollback", request.model) as actor:
            report = await self._control.rollback(request.model, actor=actor)
            return encode_report(report)

    async def StartCanary(self, request: pb.StartCanaryRequest, context: AdminContext) -> pb.CanaryStatus:
        """Let a candidate answer a share of the requests."""
        async with self._reception.call(
            context, "StartCanary", request.model, version=request.version, share=request.share
        ) as actor:
            version, share = _named(checked_version(request.version)), checked_share(request.share)
            canary = await self._control.start_canary(request.model, version, share=share, actor=actor)
            return encode_canary(canary)

    async def Promote(self, request: pb.PromoteRequest, context: AdminContext) -> pb.SwapReport:
        """Serve the candidate that is being tried."""
        async with self._reception.call(context, "Promote", request.model) as actor:
            report = await self._control.promote(request.model, actor=actor)
            return encode_report(report)

    async def StopCanary(self, request: pb.StopCanaryRequest, context: AdminContext) -> pb.CanaryStatus:
        """Take the candidate off the traffic."""
        async with self._reception.call(context, "StopCanary", request.model) as actor:
            canary = await self._control.stop_canary(request.model, actor=actor)
            return encode_canary(canary)


def _named(version: str) -> str:
    """Refuse to guess which candidate is meant."""
    if not version:
        raise InvalidRequestError("version: expected the version to try, got none; name one")
    return version
