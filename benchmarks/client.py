"""A plain gRPC client of the Open Inference Protocol; it knows nothing of the guard but its verdicts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import grpc
import numpy as np

from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as rpc


@dataclass(frozen=True)
class Answer:
    """What came back for one image.

    Attributes:
        label: Predicted class, or None where the request was rejected.
        passes: Blends spent, or None where the answer does not say (rejected).
        seconds: From sending to the answer.
    """

    label: int | None
    passes: int | None
    seconds: float

    @property
    def rejected(self) -> bool:
        return self.label is None


def send_all(address: str, model: str, images: np.ndarray, concurrency: int) -> tuple[list[Answer], float]:
    """Send each image in a request of its own; return the answers in order and the wall seconds."""
    return asyncio.run(_send_all(address, model, images, concurrency))


async def _send_all(
    address: str, model: str, images: np.ndarray, concurrency: int
) -> tuple[list[Answer], float]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        gate = asyncio.Semaphore(concurrency)

        async def one(image: np.ndarray) -> Answer:
            async with gate:
                return await _send(stub, model, image)

        await _send(stub, model, images[0])  # open the connection
        start = time.perf_counter()
        answers = await asyncio.gather(*(one(image) for image in images))
        return list(answers), time.perf_counter() - start


async def _send(stub: rpc.GRPCInferenceServiceStub, model: str, image: np.ndarray) -> Answer:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[image.tobytes()])
    request.inputs.add(name="images", datatype="FP32", shape=[1, *image.shape])
    start = time.perf_counter()
    try:
        response = await stub.ModelInfer(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise
        return Answer(None, None, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    logits = np.frombuffer(response.raw_output_contents[0], np.float32)
    return Answer(int(logits.argmax()), response.parameters["guard_passes"].int64_param, seconds)
