"""A real server on 127.0.0.1, a client of it, and a device that the test holds."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.samples import Sample

import guard.server
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.runtime.loader import LoadedModel
from guard.runtime.scheduler import CheckedClassifier, Scheduler
from guard.server import GuardServer
from guard.settings import load_settings

PATIENCE_S = 60.0


@dataclass
class Client:
    """What a test asks of a running server."""

    server: GuardServer
    channel: grpc.aio.Channel
    stub: Any
    before: dict[Any, float] = field(default_factory=dict)

    def count_from_now(self) -> None:
        """Have :meth:`counted` give what is added from now on, so that tests can share a server."""
        self.before = {key: sample.value for key, sample in self._samples()}

    async def infer(self, request: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
        return await self.stub.ModelInfer(request, **{"timeout": PATIENCE_S, **options})

    async def refusal(self, request: pb.ModelInferRequest, **options: Any) -> tuple[grpc.StatusCode, str]:
        """Send a request that is refused; return status and words."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.infer(request, **options)
        return refused.value.code(), refused.value.details()

    def counted(self, name: str, *labels: str, **only: str) -> dict[tuple[str, ...], float]:
        """Return the samples of a metric that are not 0, by the values of some labels."""
        return {
            tuple(sample.labels[label] for label in labels): sample.value - self.before.get(key, 0.0)
            for key, sample in self._samples()
            if sample.name == name
            and sample.value != self.before.get(key, 0.0)
            and only.items() <= sample.labels.items()
        }

    def infers_counted(self) -> dict[tuple[str, ...], float]:
        """Return the ModelInfer calls counted, by model and status."""
        return self.counted("guard_rpcs_total", "model", "code", method="ModelInfer")

    def _samples(self) -> Iterator[tuple[Any, Sample]]:
        for metric in self.server.registry.collect():
            for sample in metric.samples:
                yield (sample.name, *sorted(sample.labels.items())), sample


@asynccontextmanager
async def serving(repository: Path, **settings: object) -> AsyncIterator[Client]:
    """Serve a repository on free ports of 127.0.0.1 for the length of a ``with`` block."""
    server = GuardServer(settings_for(repository, **settings))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Client(server, channel, pb_grpc.GRPCInferenceServiceStub(channel))
    finally:
        await server.stop()


def settings_for(repository: Path, **settings: object) -> Any:
    free = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "device": "cpu", "threads": 1}
    return load_settings(None, {"repository": repository, **free, **settings})


def infer_request(
    images: np.ndarray, *, model: str = "tiny", name: str = "images", **fields: Any
) -> pb.ModelInferRequest:
    """Return a ModelInfer request with raw contents."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name=name, datatype="FP32", shape=images.shape)
    request.raw_input_contents.append(images.astype("<f4").tobytes())
    return request


def http_get(port: int, path: str) -> tuple[int, str]:
    """Return status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def with_device(
    model: LoadedModel,
    device: CheckedClassifier,
    max_queue_rows: int = 100,
    max_client_rows: int | None = None,
) -> LoadedModel:
    """Return the model with its scheduler on another device."""
    model.scheduler.close()
    check = model.profile.check
    scheduler = Scheduler(
        device,
        Strip(CheckPlan(check.rounds), model.profile.boundary.boundary_bits),
        max_batch_pairs=64,
        max_queue_rows=max_queue_rows,
        max_client_rows=max_client_rows,
        name=model.name,
    )
    return replace(model, scheduler=scheduler)


def hold_devices(
    monkeypatch: pytest.MonkeyPatch, hold: Callable[[CheckedClassifier], CheckedClassifier]
) -> None:
    """Have servers started from now on load their models on the device that ``hold`` makes of theirs."""
    load = guard.server.load_model

    def load_held(name: str, directory: Path, options: Any, **hooks: Any) -> LoadedModel:
        model = load(name, directory, options, **hooks)
        return with_device(model, hold(model.classifier), options.max_queue_rows, options.max_client_rows)

    monkeypatch.setattr(guard.server, "load_model", load_held)
