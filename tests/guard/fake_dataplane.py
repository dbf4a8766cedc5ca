"""A data plane of one model that answers its inputs back, or fails as it is told to."""

from __future__ import annotations

import asyncio

from guard.errors import UnknownModelError
from guard.messages import (
    InferRequest,
    InferResponse,
    ModelDescription,
    Reading,
    ServerDescription,
    TensorSpec,
)

ECHO = ModelDescription(
    name="echo",
    versions=("3",),
    platform="onnxruntime_onnx",
    backend="onnxruntime",
    max_batch_size=8,
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
    outputs=(TensorSpec("x", "FP32", (-1, 4)),),
)


class FakeDataPlane:
    """Echoes; with ``error`` set it raises that, with ``hold`` set it answers never.

    ``started`` is set once a request is inside, ``cancelled`` once one was cancelled there.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hold = False
        self.requests: list[InferRequest] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        self.started.set()
        if self.error is not None:
            raise self.error
        if self.hold:
            await self._forever()
        return InferResponse(
            request.model_name,
            "3",
            request.id,
            request.inputs,
            {"guard_verdict": "accept", "guard_passes": 4},
        )

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return True

    def knows(self, name: str) -> bool:
        return name == "echo"

    def reads(self, name: str) -> Reading:
        return Reading.TENSORS

    async def model_ready(self, name: str, version: str) -> bool:
        return name == "echo" and version in {"", "3"}

    def server(self) -> ServerDescription:
        return ServerDescription("guard", "0.1.0", ("model_configuration",))

    async def describe(self, name: str, version: str) -> ModelDescription:
        if not await self.model_ready(name, version):
            raise UnknownModelError(f"model {name!r} is not in the repository; loaded: ['echo']")
        return ECHO

    async def _forever(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
