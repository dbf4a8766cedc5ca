"""The connection to a model server, and how its failures are told.

What the server says itself goes back to the caller as it came. What happens on the way, a refused or broken
connection or a time that is up, is told in the guard's words, which name the server.

A request that nobody waits for any more, as its caller hung up or the check refused it, is not broken off: it
ends by itself, and its answer is dropped. Triton before 2.57 dies of a call that is cancelled just as it is
answered, about once in some thousand (its issue 8034, mended by its pull request 8078); and no model server
stops a computation that it has begun.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc import ChannelConnectivity, StatusCode

from guard.errors import GuardError, UpstreamDeadlineError, UpstreamError, UpstreamStatusError
from guard.messages import Metadata, Relayed
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.runtime.loader import LoadedModel
from guard.upstream.counts import UpstreamCounts, UpstreamPurpose
from guard.upstream.wire import end_to_end

__all__ = ["Address", "Link"]

_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_BROKEN: Final = frozenset(
    {StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.CANCELLED}
)
_GRACE_S: Final = 0.1  # a deadline may be told a little before its time
_HEARSAY_S: Final = 0.03  # a call may hear that its connection ends a little before the channel knows
_LOOKS: Final = 10
_MOST_LEFT: Final = 256  # calls that nobody waits for; what is left beyond is broken off
_MOST_LEFT_BYTES: Final = 256 * 1024 * 1024  # of their requests, which are kept until they end
_LEAVE_S: Final = 1.0  # that they have where the connection is closed


@dataclass(frozen=True)
class Address:
    """Where a model is served.

    Attributes:
        name: Name of the model here.
        target: ``host:port`` or ``unix:/path``.
        model: Name of the model there.
        version: Version that is asked for there; empty for whichever the server takes.
        same: Whether in its place the version of the artifact is asked for that checks.
    """

    name: str
    target: str
    model: str
    version: str = ""
    same: bool = False

    def version_of(self, model: LoadedModel) -> str:
        """Return the version to ask for where this model checks."""
        return model.version if self.same else self.version

    def __str__(self) -> str:
        there = "" if self.model == self.name else f", there {self.model!r}"
        return f"model server {self.target} (model {self.name!r}{there})"


class Link:
    """One channel to a model server; made and used on the event loop.

    Args:
        address: Where it is.
        counts: Told of each ModelInfer call.
        max_message_bytes: Largest answer.
        credentials: For TLS; None for none.

    Attributes:
        breaks: How often the connection was lost; whoever is there after that may be somebody else.
    """

    def __init__(
        self,
        address: Address,
        counts: UpstreamCounts,
        *,
        max_message_bytes: int,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        self.breaks = 0
        self._was_up = False
        self._counts = counts
        self._left: dict[asyncio.Task[Relayed], int] = {}
        options = [
            ("grpc.max_send_message_length", -1),  # what came in may go out
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = (
            grpc.aio.insecure_channel(address.target, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address.target, credentials, options=options)
        )
        self._infer = self._channel.unary_unary(_INFER)  # bytes in, bytes out
        self._stub = pb_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def connected(self) -> bool:
        """Whether there is a connection; if not, one is begun.

        Looked at before every call, so that no break goes by unseen: a channel connects again only for one.
        """
        up = self._channel.get_state(try_to_connect=True) is ChannelConnectivity.READY
        self.breaks += self._was_up and not up
        self._was_up = up
        return up

    async def connect(self) -> None:
        """Wait until there is a connection."""
        await self._channel.channel_ready()

    async def infer(
        self, message: bytes, timeout_s: float, *, purpose: UpstreamPurpose, metadata: Metadata = ()
    ) -> Relayed:
        """Send a ModelInfer request, once, and return what comes back.

        Where this is cancelled, the call goes on and its answer is dropped.

        Raises:
            UpstreamStatusError: If the server says no.
            UpstreamError: If the connection is refused or breaks.
            UpstreamDeadlineError: If it takes longer than ``timeout_s``.
        """
        call = asyncio.ensure_future(self._infer_to_the_end(message, timeout_s, purpose, metadata))
        try:
            await asyncio.wait((call,))
        except asyncio.CancelledError:
            self._leave(call, len(message))
            raise
        return call.result()

    async def _infer_to_the_end(
        self, message: bytes, timeout_s: float, purpose: UpstreamPurpose, metadata: Metadata
    ) -> Relayed:
        began, code = time.monotonic(), StatusCode.CANCELLED
        _ = self.connected
        try:
            call = self._infer(message, timeout=max(0.0, timeout_s), metadata=metadata)
            answer = await call
            code = StatusCode.OK
            return Relayed(
                answer, _plain(await call.initial_metadata()), _plain(await call.trailing_metadata())
            )
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise await self._failure(error, began, timeout_s) from error
        finally:
            self._counts.called(self.address.name, purpose, code.name, time.monotonic() - began)

    def _leave(self, call: asyncio.Task[Relayed], size: int) -> None:
        """Let a call end by itself, unless too many do, or they keep too much."""
        if len(self._left) >= _MOST_LEFT or sum(self._left.values()) + size > _MOST_LEFT_BYTES:
            call.cancel()
        self._left[call] = size
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[Relayed]) -> None:
        del self._left[call]
        if not call.cancelled():
            call.exception()  # nobody is there to be told

    async def ask(self, method: str, request: Any, timeout_s: float = math.inf) -> Any:
        """Call a method other than ModelInfer; errors as those of :meth:`infer`."""
        began = time.monotonic()
        _ = self.connected
        try:
            limit_s = None if timeout_s == math.inf else timeout_s
            return await getattr(self._stub, method)(request, timeout=limit_s)
        except grpc.aio.AioRpcError as error:
            raise await self._failure(error, began, timeout_s) from error

    async def close(self) -> None:
        """Close the connection; what is under way is broken off, calls that were left a little later."""
        if self._left:
            await asyncio.wait(self._left, timeout=_LEAVE_S)
        await self._channel.close()

    async def _failure(self, error: grpc.aio.AioRpcError, began: float, timeout_s: float) -> GuardError:
        code, details = error.code(), error.details() or ""
        if code is StatusCode.DEADLINE_EXCEEDED and time.monotonic() - began >= timeout_s - _GRACE_S:
            return UpstreamDeadlineError(
                f"{self.address} did not answer within {timeout_s:.3f} s; allow more time, send fewer rows, "
                f"or add capacity there"
            )
        if code in _BROKEN and await self._broke(_LOOKS if code is StatusCode.UNAVAILABLE else 0):
            return UpstreamError(
                f"{self.address} cannot be reached, or broke off: {details}; retry, or have the operator "
                f"look at that server"
            )
        metadata = _plain(error.initial_metadata()) + _plain(error.trailing_metadata())
        return UpstreamStatusError(details, code=code.name, metadata=metadata)

    async def _broke(self, looks: int) -> bool:
        """Return whether the connection is lost, or is at one of some later looks.

        The channel's own ``wait_for_state_change`` keeps something for every wait that is given up, until the
        state changes, which it may not for weeks.
        """
        breaks = self.breaks
        for look in range(1 + looks):
            if look:
                await asyncio.sleep(_HEARSAY_S / looks)
            if not self.connected or self.breaks != breaks:
                return True
        return False


def _plain(metadata: Any) -> Metadata:
    return end_to_end(tuple((key, value) for key, value in metadata or ()))
