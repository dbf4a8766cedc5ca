"""What comes before a method is reached: calls of no method, and messages that are none.

gRPC answers these by itself: with UNKNOWN and a traceback in the log for whatever bytes somebody sends,
and uncounted. Here they get a status, words that say what was expected, and a count.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from guard.errors import InvalidRequestError, RequestError
from guard.rpc.outcome import Context, OnRpc, answering, ignore_rpc
from guard.rpc.status import MessageTooLargeError, UnservedRpcError

__all__ = ["ORIGINAL", "Doorkeeper", "first_message"]

ORIGINAL: Final[ContextVar[bytes]] = ContextVar("original", default=b"")
"""Bytes of the request that the running method answers; empty unless the doorkeeper keeps them."""

_FIRST_MESSAGE_S: Final = 1.0

_Handler = Any  # grpc.RpcMethodHandler, which grpc does not type


@dataclass
class _Kept:
    """A request and the bytes that it was read from; empty once opened, as gRPC holds on to the last."""

    request: Any
    original: bytes

    def open(self) -> Any:
        """Return the request, for the running task, which finds its bytes in :data:`ORIGINAL`."""
        ORIGINAL.set(self.original)
        request, self.request, self.original = self.request, None, b""
        return request


class Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls of unknown methods, and messages that are too large or no message of their type.

    A method that takes a stream gets the error in place of such a message, for it has others to answer.

    Args:
        max_message_bytes: Largest request. The server's own limit has to be above it, for what gRPC
            refuses by itself is seen by nobody here.
        on_rpc: Told of each call refused.
        advice: What to do who called a method that is not here.
        keep: Methods whose requests are kept as they came, in :data:`ORIGINAL`.
    """

    def __init__(
        self,
        *,
        max_message_bytes: int,
        on_rpc: OnRpc = ignore_rpc,
        advice: str = "ask for the server's metadata",
        keep: Container[str] = (),
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._on_rpc = on_rpc
        self._advice = advice
        self._keep = keep
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[_Handler]], handler_call_details: Any
    ) -> _Handler:
        """Return what answers the call: the method behind this door, or a refusal."""
        path: str = handler_call_details.method
        if path not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:  # not kept: callers make up as many names as they like
                return self._unserved(path)
            self._guarded[path] = self._reading(path, handler)
        return self._guarded[path]

    def _unserved(self, path: str) -> _Handler:
        async def refuse(requests: Any, context: Context) -> None:
            async with answering(context, path, self._on_rpc):
                await first_message(requests)
                raise UnservedRpcError(f"method {path!r} is not served; {self._advice}")

        return grpc.stream_stream_rpc_method_handler(refuse)  # whatever the caller thinks the method is

    def _reading(self, path: str, handler: _Handler) -> _Handler:
        """Return a handler that reads with more care and answers the same."""
        name = path.rpartition("/")[2]
        read = self._reader(name, handler.request_deserializer, wrap=handler.request_streaming)

        async def answer_stream(requests: Any, context: Context) -> Any:
            return await handler.stream_stream(_unwrapped(requests), context)

        async def answer(request: Any, context: Context) -> Any:
            if isinstance(request, RequestError):
                async with answering(context, name, self._on_rpc):
                    raise request
            if isinstance(request, _Kept):
                request = request.open()
            return await method(request, context)

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_stream, read, handler.response_serializer)
        method = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(answer, read, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(answer, read, handler.response_serializer)

    def _reader(
        self, name: str, deserialize: Callable[[bytes], Any], *, wrap: bool
    ) -> Callable[[bytes], Any]:
        """Return what reads a method's messages: what is wrong with one is returned, not raised."""

        def read(message: bytes) -> Any:
            if len(message) > self._max_message_bytes:
                return MessageTooLargeError(
                    f"the message has {len(message)} bytes, expected at most {self._max_message_bytes} "
                    f"(max_message_bytes); send fewer rows in a request"
                )
            try:
                request = deserialize(message)
                if name in self._keep:
                    return _Kept(request, message)
                return _Kept(request, b"") if wrap else request
            except DecodeError:
                return InvalidRequestError(
                    f"the message of {len(message)} bytes is not one that {name} takes; "
                    f"make the client from the .proto file of the protocol"
                )

        return read


async def _unwrapped(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield what a stream brings, errors included; :data:`ORIGINAL` holds the bytes of the last one.

    It is set for whoever reads, so a task that is begun before the next is read keeps its own.
    """
    async for message in requests:  # nothing here holds a request while the next is waited for
        if isinstance(message, _Kept):
            yield message.open()
        else:
            ORIGINAL.set(b"")
            yield message


async def first_message(requests: Any) -> None:
    """Take a message, if one comes soon: a client refused while it still sends sees INTERNAL instead."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            async for _ in requests:
                return
