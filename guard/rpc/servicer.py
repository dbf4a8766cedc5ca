"""The Open Inference Protocol service: decode, ask the data plane, encode.

What the protocol has and the guard cannot check is refused by name and with a reason, rather than left
to fail as unknown: shared memory and a model loaded from the request are ways around a check that looks at
the tensors of one request.
"""

# ruff: noqa: N802  the protocol names the methods

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, Protocol, TypeVar, runtime_checkable

from guard.messages import (
    InferRequest,
    InferResponse,
    ModelCounts,
    ModelDescription,
    ModelState,
    Reading,
    ServerDescription,
)
from guard.rpc.client_name import client_of
from guard.rpc.codec import decode_request, encode_config, encode_metadata, encode_response, encode_server
from guard.rpc.interceptors import ORIGINAL
from guard.rpc.listing import encode_index, encode_statistics, refuse_other_repository
from guard.rpc.outcome import Call, Context, OnRpc, abort, ignore_rpc
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.rpc.places import Places
from guard.rpc.status import UnservedRpcError
from guard.rpc.stream import StreamContext, Streams

__all__ = ["DataPlane", "InferenceServicer"]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Method = Callable[["InferenceServicer", _Request, Context], Awaitable[_Response]]


@runtime_checkable
class DataPlane(Protocol):
    """What the service asks of the rooms behind it."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Check and answer one request."""
        ...

    def live(self) -> bool:
        """Return whether the server runs."""
        ...

    def ready(self) -> bool:
        """Return whether it takes requests for every model."""
        ...

    def knows(self, name: str) -> bool:
        """Return whether a model is here, ready or not."""
        ...

    def reads(self, name: str) -> Reading:
        """Return how far the request for a model that came now is looked into."""
        ...

    async def model_ready(self, name: str, version: str) -> bool:
        """Return whether a model is here and takes requests; False for an unknown one."""
        ...

    def server(self) -> ServerDescription:
        """Return what the server says of itself."""
        ...

    async def describe(self, name: str, version: str) -> ModelDescription:
        """Return what a model takes and gives, or raise UnknownModelError."""
        ...

    async def statistics(self, name: str, version: str) -> Iterable[ModelCounts]:
        """Return what was counted of a model, empty name for all, or raise UnknownModelError."""
        ...

    def index(self) -> Iterable[ModelState]:
        """Return every version that is served, or ought to be."""
        ...


def _answers(method: _Method[_Request, _Response]) -> _Method[_Request, _Response]:
    """Give a method's errors their statuses and report its outcome, whichever it is."""

    @wraps(method)
    async def answer(self: InferenceServicer, request: _Request, context: Context) -> _Response:
        with Call(context, method.__name__, self._on_rpc, self._label(request)) as call:
            return await method(self, request, context)
        return await abort(context, call)

    return answer


def _refuses(name: str, why: str) -> _Method[Any, Any]:
    """Return a method that answers UNIMPLEMENTED and says why."""

    async def refuse(self: InferenceServicer, request: Any, context: Context) -> Any:
        raise UnservedRpcError(f"{name} is not served: {why}")

    refuse.__name__ = name
    return _answers(refuse)


_REPOSITORY = "models are loaded by the operator, on the admin port (setting admin_port), never on this one"
_MEMORY = "tensors in shared memory would go around the guard; send them in the request"
_SETTINGS = "trace and log settings are the operator's, set where the server is started"


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Serves ``inference.GRPCInferenceService`` from a data plane.

    Args:
        dataplane: Answers everything; see :class:`DataPlane`.
        on_rpc: Called once for each finished call, see :data:`guard.rpc.outcome.OnRpc`. The model is
            named for ModelInfer only, and only when the data plane knows it, so that the set of
            names stays closed whatever callers ask for.
        max_concurrent_requests: Most requests under way at once, those of streams included.
        max_queue_rows: Rows that may wait for a model; streams leave a quarter of them to calls.
        client_header: Metadata key in which a trusted proxy says who asks; None where there is no proxy.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        on_rpc: OnRpc = ignore_rpc,
        max_concurrent_requests: int = 256,
        max_queue_rows: int = 1024,
        client_header: str | None = None,
    ) -> None:
        self._client_header = client_header
        self._dataplane = dataplane
        self._on_rpc = on_rpc
        self._places = Places(max_concurrent_requests, max_queue_rows)
        self._streams = Streams(self._answer_streamed, self._label, self._places, on_rpc)

    def end_streams(self) -> None:
        """Have every stream finish what it has accepted and end, for the server is about to stop."""
        self._streams.end()

    @_answers
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Return whether the server runs."""
        return pb.ServerLiveResponse(live=self._dataplane.live())

    @_answers
    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Return whether every model takes requests."""
        return pb.ServerReadyResponse(ready=self._dataplane.ready())

    @_answers
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Return whether a model takes requests; an unknown one does not, which is no error."""
        return pb.ModelReadyResponse(ready=await self._dataplane.model_ready(request.name, request.version))

    @_answers
    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Return name, version and extensions of the server."""
        return encode_server(self._dataplane.server())

    @_answers
    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Return what a model takes and gives."""
        return encode_metadata(await self._dataplane.describe(request.name, request.version))

    @_answers
    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Return the same as Triton's configuration would say it."""
        model = await self._dataplane.describe(request.name, request.version)
        return pb.ModelConfigResponse(config=encode_config(model))

    @_answers
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Check one request and answer it."""
        async with self._places.of_call():
            answer = await self._infer(request, context)
            encoded = encode_response(answer)
        if answer.relayed is not None:
            context.set_trailing_metadata(answer.relayed.trailing_metadata)
            if answer.relayed.initial_metadata:
                await context.send_initial_metadata(answer.relayed.initial_metadata)
        return encoded

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: StreamContext
    ) -> None:
        """Check and answer each request of a stream."""
        await self._streams.serve(requests, context)

    @_answers
    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Return what was counted of one model, or of all."""
        return encode_statistics(await self._dataplane.statistics(request.name, request.version))

    @_answers
    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """Return every version that is served, or ought to be, and why it is not."""
        refuse_other_repository(request.repository_name)
        return encode_index(self._dataplane.index(), only_ready=request.ready)

    RepositoryModelLoad = _refuses("RepositoryModelLoad", _REPOSITORY)
    RepositoryModelUnload = _refuses("RepositoryModelUnload", _REPOSITORY)
    SystemSharedMemoryStatus = _refuses("SystemSharedMemoryStatus", _MEMORY)
    SystemSharedMemoryRegister = _refuses("SystemSharedMemoryRegister", _MEMORY)
    SystemSharedMemoryUnregister = _refuses("SystemSharedMemoryUnregister", _MEMORY)
    CudaSharedMemoryStatus = _refuses("CudaSharedMemoryStatus", _MEMORY)
    CudaSharedMemoryRegister = _refuses("CudaSharedMemoryRegister", _MEMORY)
    CudaSharedMemoryUnregister = _refuses("CudaSharedMemoryUnregister", _MEMORY)
    TraceSetting = _refuses("TraceSetting", _SETTINGS)
    LogSettings = _refuses("LogSettings", _SETTINGS)

    async def _infer(self, request: pb.ModelInferRequest, context: Context) -> InferResponse:
        """Check one request and answer it, whether it came as a call or on a stream."""
        message = ORIGINAL.get()
        decoded = decode_request(
            request,
            timeout_s=context.time_remaining(),
            client=client_of(context, self._client_header),
            message=message,
            read=self._dataplane.reads(request.model_name),
            metadata=tuple((key, value) for key, value in context.invocation_metadata() or ())
            if message
            else (),
        )
        return await self._dataplane.infer(decoded)

    async def _answer_streamed(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        return encode_response(await self._infer(request, context))

    def _label(self, request: object) -> str:
        """Return the model to report a call under."""
        if isinstance(request, pb.ModelInferRequest) and self._dataplane.knows(request.model_name):
            return request.model_name
        return ""
