"""A data plane of one model that answers its inputs back, or fails as it is told to."""

from __future__ import annotations

import asyncio

from guard.errors import UnknownModelError
from guard.messages import (
    InferRequest,
    InferResponse,
    ModelCounts,
    ModelDescription,
    ModelState,
    Reading,
    ServerDescription,
    TensorSpec,
    TotalTime,
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

COUNTS = ModelCounts(
    name="echo",
    version="3",
    last_inference_ms=1_700_000_000_000,
    inferences=12,
    success=TotalTime(4, 4000),
    fail=TotalTime(1, 100),
    queue=TotalTime(4, 700),
    compute=TotalTime(4, 3000),
    batches={4: TotalTime(2, 800), 8: TotalTime(1, 500)},
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

    async def statistics(self, name: str, version: str) -> list[ModelCounts]:
        if name and not await self.model_ready(name, version):
            raise UnknownModelError(f"model {name!r} is not in the repository; loaded: ['echo']")
        return [COUNTS]

    def index(self) -> list[ModelState]:
        return [ModelState("echo", "3"), ModelState("echo", "4", "it does not answer as calibrated")]

    async def _forever(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
