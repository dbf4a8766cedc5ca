"""Triton with an unguarded and a guarded model, guards as processes, and Envoy in front of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

import peers
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.e2e.envoy_process import Envoy
from tests.e2e.guard_process import Process
from tests.e2e.triton_process import Triton, environment, write_model
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, tiny_repository
from tests.serving import PATIENCE_S, infer_request
from tests.tiny_models import linear_classifier

__all__ = ["GUARDED", "GUARDS", "UNGUARDED", "House", "house_in", "stub_of"]

UNGUARDED, GUARDED = "plain", "tiny"
GUARDS = ("guard", "second_guard")


@dataclass
class House:
    """The processes; guards are started by name, and those that run can be killed."""

    triton: Triton
    envoy: Envoy
    repository: Path
    guards: dict[str, Process] = field(default_factory=dict)

    def start_guards(self, *names: str) -> None:
        """Start guards where Envoy looks for them, and wait until they are ready."""
        upstream = {
            "GUARD_MODELS__TINY__UPSTREAM": self.triton.address,
            "GUARD_MODELS__PLAIN__UPSTREAM": self.triton.address,
            "GUARD_MODELS__PLAIN__GUARDED": "false",  # for streams, which may name both
            "GUARD_UPSTREAM_POLL_S": "0.1",
        }
        where = ("--repository", self.repository, "--host", "127.0.0.1", "--metrics-port", "0")
        for name in names:
            port = ("--port", self.envoy.ports[name], "--threads", "1")
            self.guards[name] = Process.start("serve", *where, *port, **upstream)
        for name in names:
            self.guards[name].wait_for("ready")

    def kill_guard(self, name: str) -> None:
        """End a guard at once."""
        process = self.guards.pop(name)
        process.popen.kill()
        process.end()

    def inferences(self, model: str) -> int:
        """Return how many rows Triton ran on a model, by its own count, but for those of batches of three.

        It counts what it ran after the answer has left. So it is asked a batch of three, which no test asks:
        once that one is counted, all before is.
        """
        with grpc.insecure_channel(self.triton.address) as channel:
            stub = stub_of(channel)
            before = _rows_by_size(stub, model)[3]
            stub.ModelInfer(infer_request(CLEAN[:1].repeat(3, axis=0), model=model), timeout=PATIENCE_S)
            while (rows := _rows_by_size(stub, model))[3] == before:
                assert self.triton.process is not None
                assert self.triton.process.poll() is None
        return rows.total() - rows[3]


def _rows_by_size(stub: pb_grpc.GRPCInferenceServiceStub, model: str) -> Counter[int]:
    asked = pb.ModelStatisticsRequest(name=model)
    [found] = stub.ModelStatistics(asked, timeout=PATIENCE_S).model_stats
    return Counter({one.batch_size: one.batch_size * one.compute_infer.count for one in found.batch_stats})


def stub_of(channel: grpc.Channel) -> pb_grpc.GRPCInferenceServiceStub:
    """Return the stub; the generated code has no types."""
    return pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


@contextmanager
def house_in(folder: Path) -> Iterator[House]:
    """Start Triton and Envoy; all that runs is ended at the end."""
    for part in ("triton", "envoy", "guards"):
        (folder / part).mkdir()
    triton = Triton(environment(), folder / "triton", GUARDED, (UNGUARDED,))
    for model in (GUARDED, UNGUARDED):
        write_model(triton.repository, model, linear_classifier(), max_batch_size=4)
    np.savez(triton.folder / "images.npz", clean=CLEAN, suspicious=SUSPICIOUS)
    envoy = Envoy(peers.environment("envoy"), folder / "envoy")
    envoy.ports["model_server"] = triton.ports["grpc"]
    house = House(triton, envoy, tiny_repository(folder / "guards"))
    try:
        triton.start()
        envoy.start()
        yield house
    finally:
        for name in tuple(house.guards):
            house.kill_guard(name)
        envoy.kill()
        triton.kill()
