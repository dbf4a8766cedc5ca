"""Clients that keep asking, whatever is done to the server meanwhile, and what became of every request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as rpc

__all__ = ["Load", "Outcome", "p99_ms"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        at: When it was sent, on the clock of :func:`time.monotonic`.
        seconds: Until the answer.
        version: Of the model that answered; empty where nothing did or the request was refused.
        failure: Status of a request that failed; empty for an answer and for a refusal by policy.
    """

    at: float
    seconds: float
    version: str
    failure: str


class Load:
    """Sends images one after the other from several clients, each on a connection of its own.

    Args:
        address: Of the server.
        model: To ask.
        images: float32 (n, c, h, w); sent again and again.
        clients: How many.
        pause_s: Of each client between an answer and its next request.

    Attributes:
        outcomes: Of every request that was sent, once stopped.
        pause_s: May be changed while clients ask.
    """

    def __init__(
        self, address: str, model: str, images: np.ndarray, *, clients: int = 8, pause_s: float = 0.0
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._address, self._model, self._images = address, model, images
        self._clients, self.pause_s = clients, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the answers to all that was sent."""
        self._stop.set()
        self._thread.join()

    def failures(self) -> list[str]:
        """Return the statuses of requests that failed."""
        return [outcome.failure for outcome in self.outcomes if outcome.failure]

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    async def _client(self, number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub = rpc.GRPCInferenceServiceStub(channel)
            row = number
            while not self._stop.is_set():
                self.outcomes.append(await self._send(stub, self._images[row % len(self._images)]))
                row += self._clients
                await asyncio.sleep(self.pause_s)

    async def _send(self, stub: rpc.GRPCInferenceServiceStub, image: np.ndarray) -> Outcome:
        request = pb.ModelInferRequest(model_name=self._model, raw_input_contents=[image.tobytes()])
        request.inputs.add(name="images", datatype="FP32", shape=[1, *image.shape])
        at, version, failure = time.monotonic(), "", ""
        try:
            version = (await stub.ModelInfer(request)).model_version
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                failure = f"{error.code().name}: {error.details()}"
        return Outcome(at, time.monotonic() - at, version, failure)


def p99_ms(outcomes: Sequence[Outcome], start: float, end: float) -> float:
    """Return the 99th percentile of the latencies of requests sent in a span of time; NaN of none."""
    found = [outcome.seconds for outcome in outcomes if start <= outcome.at < end]
    return float(np.percentile(found, 99)) * 1e3 if found else float("nan")
