"""ModelStreamInfer: many requests on one call, each checked and answered as ModelInfer does it.

Theory of operation. A reader takes messages off the stream and begins each at once, so that those of one
stream share device batches; a writer waits for them in the order in which they came and sends their answers.
What bounds a stream is a window: the next message is read only while fewer than that many are under way or
wait to be sent, so neither a fast sender nor a slow reader at the other end has the guard hold more. The
place that a message takes among all requests (:mod:`guard.rpc.places`) is given back once it is answered.

::

    client ─► reader ─ window ─ place ─► task ─┐ one for each message, side by side
    client ◄─ writer ◄── in order ─────────────┘

A message that fails is answered with words, and the stream goes on. Where the caller asked for gRPC's status
(metadata ``triton_grpc_error: true``) the first failure ends the stream with it, and what is under way behind
it is cancelled, as it is when the caller hangs up or its time is up. Both are what Triton does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from guard.errors import QueueFullError, RequestError, ShuttingDownError
from guard.rpc.interceptors import ORIGINAL, first_message
from guard.rpc.outcome import Call, Context, OnRpc, Refusal, answering
from guard.rpc.parameters import add_parameters
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.places import Places
from guard.rpc.status import metadata_of, status_of

__all__ = ["METHOD", "StreamContext", "Streams"]

METHOD: Final = "ModelStreamInfer"
_STATUS_WANTED: Final = ("triton_grpc_error", "true")
_FINAL: Final = "triton_final_response"

Request = pb.ModelInferRequest | RequestError
"""A message, or what is wrong with one that could not be read."""

_Answered = tuple[pb.ModelStreamInferResponse, Refusal | None]


@runtime_checkable
class StreamContext(Context, Protocol):
    """What a stream uses of its call's context."""

    async def write(self, message: pb.ModelStreamInferResponse) -> None:
        """Send a message; returns once there is room for the next."""
        ...


class Streams:
    """Serves the streams of a server.

    Args:
        answer: Answers one request, exactly as a call of its own.
        label: Returns the model to count a message under.
        places: What bounds requests.
        on_rpc: Told of each message as of a call of its own.
    """

    def __init__(
        self,
        answer: Callable[[pb.ModelInferRequest, Context], Awaitable[pb.ModelInferResponse]],
        label: Callable[[object], str],
        places: Places,
        on_rpc: OnRpc,
    ) -> None:
        self.answer = answer
        self.label = label
        self.places = places
        self.on_rpc = on_rpc
        self._open: set[_Stream] = set()
        self._ended = False

    async def serve(self, requests: AsyncIterator[Request], context: StreamContext) -> None:
        """Answer a stream to its end."""
        if self._ended or len(self._open) >= self.places.streams:
            async with answering(context, METHOD, self.on_rpc):
                await first_message(requests)
                raise self._refusal()
        stream = _Stream(self, requests, context)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    def end(self) -> None:
        """Have every stream answer what it has accepted, read no further, and end; begin no other."""
        self._ended = True
        for stream in self._open:
            stream.end()

    def _refusal(self) -> Exception:
        if self._ended:
            return _shutting_down()
        return QueueFullError(
            f"{len(self._open)} streams are open already, half of what max_concurrent_requests allows; "
            f"send the requests by ModelInfer, or on a stream that is open"
        )


class _Stream:
    """One stream."""

    def __init__(self, streams: Streams, requests: AsyncIterator[Request], context: StreamContext) -> None:
        self._streams = streams
        self._requests = requests
        self._context = context
        self._status_wanted = _STATUS_WANTED in (context.invocation_metadata() or ())
        self._window = asyncio.Semaphore(streams.places.window)
        self._line: asyncio.Queue[asyncio.Task[_Answered] | None] = asyncio.Queue()
        self._under_way: set[asyncio.Task[_Answered]] = set()
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._line.put_nowait(None))

    async def run(self) -> None:
        """Read and write until there is nothing more."""
        try:
            await self._write()
            await asyncio.wait([self._reader])
            if self._reader.cancelled():
                await self._context.abort(*_refusal_of(_shutting_down()))
            self._reader.result()
        finally:
            await _cancelled({self._reader, *self._under_way})

    def end(self) -> None:
        """Read no further."""
        self._reader.cancel()

    async def _read(self) -> None:
        await self._window.acquire()
        async for request in self._requests:
            taken = await self._streams.places.take_for_stream(_rows_of(request))
            task = asyncio.create_task(self._answer(request))
            del request  # however long the stream is silent, it holds no message
            ORIGINAL.set(b"")
            task.add_done_callback(partial(self._done, taken))
            self._under_way.add(task)
            self._line.put_nowait(task)
            await self._window.acquire()

    async def _write(self) -> None:
        while (task := await self._line.get()) is not None:
            answer, refusal = await task
            if refusal is not None and self._status_wanted:
                await self._context.abort(*refusal)
            await self._context.write(answer)
            self._window.release()

    def _done(self, taken: int, task: asyncio.Task[_Answered]) -> None:
        self._under_way.discard(task)
        self._streams.places.leave_by_stream(taken)

    async def _answer(self, request: Request) -> _Answered:
        """Return the answer to a message, or how it is refused."""
        answer = pb.ModelStreamInferResponse()
        with Call(self._context, METHOD, self._streams.on_rpc, self._streams.label(request)) as call:
            if isinstance(request, RequestError):
                raise request
            answer.infer_response.CopyFrom(await self._streams.answer(request, self._context))
        if call.refusal is not None:
            answer = _refused(request, call.refusal)
        answer.infer_response.parameters[_FINAL].bool_param = True
        ORIGINAL.set(b"")  # which the task holds until its answer is sent
        return answer, call.refusal


def _rows_of(request: Request) -> int:
    """Return how many rows a message says that it brings."""
    if isinstance(request, RequestError) or not request.inputs or not request.inputs[0].shape:
        return 1
    return request.inputs[0].shape[0]


def _refused(request: Request, refusal: Refusal) -> pb.ModelStreamInferResponse:
    """Return the answer that says no: status and words, and beside them what a call has as metadata."""
    code, words, metadata = refusal
    answer = pb.ModelStreamInferResponse(error_message=f"[StatusCode.{code.name}] {words}")
    if isinstance(request, pb.ModelInferRequest):
        answer.infer_response.id = request.id
        answer.infer_response.model_name = request.model_name
        answer.infer_response.model_version = request.model_version
    said = {key.replace("-", "_"): str(value) for key, value in metadata if key.startswith("guard-")}
    add_parameters(answer.infer_response.parameters, {"guard_status": code.name, **said})
    return answer


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down; send what was not answered again, elsewhere")


def _refusal_of(error: Exception) -> Refusal:
    return *status_of(error), metadata_of(error)


async def _cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they are: each is counted on its way out."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
