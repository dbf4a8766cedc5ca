"""How a call ends: what it raises becomes a status, and every end is reported exactly once.

A servicer's method raises; it never calls ``abort`` itself. Both gRPC faces of the guard share this.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, NoReturn, Protocol, runtime_checkable
from urllib.parse import unquote

import grpc

from guard.messages import Metadata
from guard.rpc.status import metadata_of, status_of

__all__ = ["Call", "Context", "OnRpc", "Refusal", "abort", "address_of", "answering", "ignore_rpc"]

# A caller's clock started before ours and its deadline was rounded up on the way, so it hangs up a
# little before our copy of the deadline has passed.
_GRACE_S: Final = 0.1

OnRpc = Callable[[str, str, str, float], None]
"""Told of each finished call: method, model ("" where there is none), status name, seconds."""

Refusal = tuple[grpc.StatusCode, str, Metadata]
"""What a caller is told: status, words, trailing metadata."""


@runtime_checkable
class Context(Protocol):
    """What the guard uses of a gRPC call's context."""

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Metadata = (),
    ) -> NoReturn:
        """End the call with a status, by raising."""
        ...

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline, None if it set none."""
        ...

    def peer(self) -> str:
        """Return where the call comes from, such as ``ipv4:127.0.0.1:52817`` or ``unix:``."""
        ...

    def invocation_metadata(self) -> Metadata | None:
        """Return what the caller sent beside the request."""
        ...

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Send metadata before the answer."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Send metadata after the answer."""
        ...


def address_of(peer: str) -> str:
    """Return where a call comes from without the port, which differs from call to call.

    Examples:
        >>> address_of("ipv4:10.0.0.7:52817"), address_of("ipv6:%5B::1%5D:50412"), address_of("unix:")
        ('ipv4:10.0.0.7', 'ipv6:[::1]', 'unix:')
    """
    plain = unquote(peer)
    return plain.rpartition(":")[0] if plain.startswith(("ipv4:", "ipv6:")) else plain


def ignore_rpc(method: str, model: str, code: str, seconds: float) -> None:
    """Take note of nothing."""


class Call:
    """The body of a call: an error becomes what the caller is told, and every end is reported.

    A cancelled call is reported as CANCELLED, or as DEADLINE_EXCEEDED where the caller's time was up,
    and the cancellation goes on its way.

    Args:
        context: Of the call, or of the stream that it is a message of.
        method: Its name.
        on_rpc: Hears of the outcome, whichever it is.
        model: The model that is asked; empty for none.

    Attributes:
        refusal: What the caller is to be told once the body is left; None where all went well.
    """

    def __init__(self, context: Context, method: str, on_rpc: OnRpc, model: str = "") -> None:
        self.refusal: Refusal | None = None
        self._context = context
        self._method = method
        self._on_rpc = on_rpc
        self._model = model
        self._started = 0.0

    def __enter__(self) -> Call:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        code = grpc.StatusCode.OK
        if isinstance(error, asyncio.CancelledError):
            code = _why_cancelled(self._context)
        elif isinstance(error, Exception):  # the last door: whatever it is, the caller gets a status
            code, message = status_of(error)
            self.refusal = (code, message, metadata_of(error))
        elif error is not None:
            code = grpc.StatusCode.UNKNOWN
        # Before the caller hears of it, so that whoever asks next finds it counted.
        self._on_rpc(self._method, self._model, code.name, time.perf_counter() - self._started)
        return self.refusal is not None


@asynccontextmanager
async def answering(context: Context, method: str, on_rpc: OnRpc, model: str = "") -> AsyncIterator[None]:
    """Run a method's body: errors become statuses, and ``on_rpc`` hears of the outcome; see :class:`Call`."""
    with Call(context, method, on_rpc, model) as call:
        yield
    if call.refusal is not None:
        await abort(context, call)


async def abort(context: Context, call: Call) -> NoReturn:
    """Tell the caller how a call was refused, which ends it by raising."""
    assert call.refusal is not None, "only what raised is left without an answer"
    await context.abort(*call.refusal)


def _why_cancelled(context: Context) -> grpc.StatusCode:
    """Return whether the caller hung up or ran out of time: gRPC cancels the method in both cases."""
    remaining_s = context.time_remaining()
    if remaining_s is not None and remaining_s <= _GRACE_S:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
