"""A small model server of the V2 protocol, which runs an ONNX model and can be told to misbehave.

It speaks the protocol as real ones do: raw answers to raw requests and typed ones to typed ones (MLServer),
or always raw ones (Triton), a batch limit and a configuration (Triton) or none of both (KServe).
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime as ort

from guard.rpc.pb import open_inference_pb2 as pb
from tests.free_ports import free_port

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass
class Call:
    """One ModelInfer call as it arrived."""

    message: bytes
    metadata: dict[str, str | bytes]
    time_remaining_s: float | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    @property
    def request(self) -> pb.ModelInferRequest:
        return pb.ModelInferRequest.FromString(self.message)


class ModelServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves one model; what it is told takes effect with the next call.

    Attributes:
        calls: ModelInfer calls, in the order in which they came.
        asked: How often each method was called.
        open: While it is not set, ModelInfer calls are held.
        refusal: Status, details and trailing metadata of every ModelInfer with an id; None to answer.
        refuses_checks: The same for those without one, as probes and checks are.
        answer_metadata: Sent before and after each answer.
        dies: Whether the server breaks off all connections when the next ModelInfer arrives.
        parameters: Further parameters of each answer.
        statistics: Whether it answers ModelStatistics.
        raw: What is answered in place of the model's answer; None for that.
        extra_inputs: Names of inputs that the metadata names besides the model's.
        ensembles: What models of this server are made of, as their configurations say.
        pretends: Names of further outputs of each answer, each a tensor of bytes that says "accept".
        checks_pass: Whether calls without an id, as probes and checks are, pass while ``open`` is not set.
        checks_open: While it is not set, those are held.
        beside: Versions served beside ``version``.
        brings: What RepositoryModelLoad does, the server handed in; None where there is no such call.
        loads_open: While it is not set, RepositoryModelLoad calls are held.
        load_refusal: Status and words of every RepositoryModelLoad; None to do it.
        tells_versions_apart: Whether another version than those that there are is refused.
        kept: How many versions its configuration says that it keeps (Triton's ``latest``); 0 for all.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        name: str = "tiny",
        version: str = "1",
        max_batch_size: int = 0,
        config: bool = True,
        typed: bool = False,
        socket: Path | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._credentials = credentials
        self.socket = socket
        self.name, self.version, self.max_batch_size = name, version, max_batch_size
        self.config, self.typed = config, typed
        self.ready = True
        self.calls: list[Call] = []
        self.asked: Counter[str] = Counter()
        self.open = asyncio.Event()
        self.open.set()
        self.refusal: tuple[grpc.StatusCode, str, Metadata] | None = None
        self.refuses_checks: tuple[grpc.StatusCode, str, Metadata] | None = None
        self.parameters: dict[str, str] = {}
        self.answer_metadata: tuple[Metadata, Metadata] = ((), ())
        self.dies = False
        self.raw: bytes | None = None
        self.statistics = False
        self.extra_inputs: tuple[str, ...] = ()
        self.ensembles: dict[str, tuple[str, ...]] = {}
        self.pretends: tuple[str, ...] = ()
        self.checks_pass = False
        self.checks_open = asyncio.Event()
        self.checks_open.set()
        self.beside: dict[str, ort.InferenceSession] = {}
        self.brings: Callable[[ModelServer], None] | None = None
        self.loads_open = asyncio.Event()
        self.loads_open.set()
        self.load_refusal: tuple[grpc.StatusCode, str] | None = None
        self.tells_versions_apart = True
        self.kept = 0
        self.port = free_port()
        self._changing = asyncio.Lock()  # one that is being killed is gone before it is started again
        self._arrived = asyncio.Event()
        self._server: Any = None
        self.load(model)

    def load(self, model: onnx.ModelProto) -> None:
        """Serve another model from now on."""
        self._session = _opened(model)
        self._input, self._output = self._session.get_inputs()[0], self._session.get_outputs()[0]

    def add(self, version: str, model: onnx.ModelProto) -> None:
        """Serve a version beside what is served."""
        self.beside[version] = _opened(model)

    async def __aenter__(self) -> ModelServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def address(self) -> str:
        return f"unix:{self.socket}" if self.socket else f"127.0.0.1:{self.port}"

    @property
    def predictions(self) -> list[Call]:
        """The calls that are no part of a probe or of a check: those with an id."""
        return [call for call in self.calls if call.request.id]

    async def start(self) -> None:
        """Listen, on the same port again if it was killed."""
        async with self._changing:
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            server.add_generic_rpc_handlers((self,))
            if self._credentials is None:
                server.add_insecure_port(self.address)
            else:
                server.add_secure_port(self.address, self._credentials)
            await server.start()
            self._server = server

    async def kill(self) -> None:
        """Break off every connection and listen no more."""
        async with self._changing:
            server, self._server = self._server, None
            if server is not None:
                await server.stop(None)

    async def arrival(self, count: int = 1) -> Call:
        """Wait for ModelInfer calls with an id; return the last."""
        async with asyncio.timeout(60.0):
            while len(self.predictions) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.predictions[count - 1]

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        self.asked[name] += 1
        method = {
            "ModelInfer": self._infer,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config if self.config else None,
            "ModelStatistics": self._statistics if self.statistics else None,
            "RepositoryModelLoad": self._load_by_call if self.brings else None,
        }.get(name)
        return method and grpc.unary_unary_rpc_method_handler(method)

    async def _model_ready(self, message: bytes, context: Any) -> bytes:
        asked = pb.ModelReadyRequest.FromString(message)
        here = asked.name == self.name and self._has(asked.version)
        return pb.ModelReadyResponse(ready=self.ready and here).SerializeToString()

    def _has(self, version: str) -> bool:
        return version in {"", self.version, *self.beside} or not self.tells_versions_apart

    async def _statistics(self, message: bytes, context: Any) -> bytes:
        asked = pb.ModelStatisticsRequest.FromString(message)
        versions = [one for one in (self.version, *self.beside) if asked.version in {"", one}]
        answer = pb.ModelStatisticsResponse()
        for version in versions:
            one = answer.model_stats.add(name=self.name, version=version, inference_count=700)
            one.execution_count = len(self.calls)
            one.inference_stats.success.count = one.inference_stats.queue.count = 70
            one.inference_stats.compute_infer.ns = 7_000
            one.memory_usage.add(type="CPU", byte_size=7)
        return answer.SerializeToString()

    async def _load_by_call(self, message: bytes, context: Any) -> bytes:
        assert pb.RepositoryModelLoadRequest.FromString(message).model_name == self.name
        await self.loads_open.wait()
        if self.load_refusal is not None:
            await context.abort(*self.load_refusal)
        assert self.brings is not None
        self.brings(self)
        return pb.RepositoryModelLoadResponse().SerializeToString()

    async def _metadata(self, message: bytes, context: Any) -> bytes:
        answer = pb.ModelMetadataResponse(
            name=self.name, versions=[self.version, *self.beside], platform="test"
        )
        row = [-1, *self._input.shape[1:]]
        for name in (self._input.name, *self.extra_inputs):
            answer.inputs.add(name=name, datatype="FP32", shape=row)
        answer.outputs.add(name=self._output.name, datatype="FP32", shape=[-1, *self._output.shape[1:]])
        return answer.SerializeToString()

    async def _config(self, message: bytes, context: Any) -> bytes:
        asked = pb.ModelConfigRequest.FromString(message).name
        config = pb.ModelConfig(name=asked, max_batch_size=self.max_batch_size, backend="test")
        for part in self.ensembles.get(asked, ()):
            config.ensemble_scheduling.step.add(model_name=part)
        config.parameters["kept"].string_value = "as it is"
        if self.kept:
            config.version_policy.latest.num_versions = self.kept
        return pb.ModelConfigResponse(config=config).SerializeToString()

    async def _infer(self, message: bytes, context: Any) -> bytes:
        call = Call(message, dict(context.invocation_metadata()), context.time_remaining())
        self.calls.append(call)
        self._arrived.set()
        try:
            if self.dies and call.request.id:
                self.dies = False
                asyncio.get_running_loop().create_task(self.kill())
                await asyncio.Event().wait()
            if call.request.id or not self.checks_pass:
                await self.open.wait()
            if not call.request.id:
                await self.checks_open.wait()
            return await self._answer(call.request, context)
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        finally:
            call.ended.set()

    async def _answer(self, request: pb.ModelInferRequest, context: Any) -> bytes:
        if self.refusal is not None and request.id:
            await context.abort(*self.refusal)
        if self.refuses_checks is not None and not request.id:
            await context.abort(*self.refuses_checks)
        if self.raw is not None and request.id:
            return self.raw
        if not self._has(request.model_version):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no version {request.model_version}")
        tensor = request.inputs[0]
        if self.max_batch_size and tensor.shape[0] > self.max_batch_size:
            words = f"batch of {tensor.shape[0]} is more than {self.max_batch_size}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
        initial, trailing = self.answer_metadata
        context.set_trailing_metadata(trailing)
        if initial:
            await context.send_initial_metadata(initial)
        return self._run(request).SerializeToString()

    def _run(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        tensor = request.inputs[0]
        raw = bool(request.raw_input_contents)
        flat: Any = np.array(tensor.contents.fp32_contents, np.float32)
        if raw:
            flat = np.frombuffer(request.raw_input_contents[0], "<f4")
        other = self.beside.get(request.model_version)
        version = request.model_version if other else self.version
        [logits] = (other or self._session).run(None, {self._input.name: flat.reshape(tensor.shape)})
        answer = pb.ModelInferResponse(model_name=self.name, model_version=version, id=request.id)
        answer.parameters["theirs"].int64_param = 7
        for name, value in self.parameters.items():
            answer.parameters[name].string_param = value
        for name in self.pretends:
            answer.outputs.add(name=name, datatype="BYTES", shape=[1])
            answer.raw_output_contents.append(b"\x06\0\0\0accept")
        output = answer.outputs.add(name=self._output.name, datatype="FP32", shape=logits.shape)
        output.parameters["of_the_output"].bool_param = True
        if raw or not self.typed:
            answer.raw_output_contents.append(logits.astype("<f4").tobytes())
        else:
            output.contents.fp32_contents.extend(logits.ravel().tolist())
        return answer


def _opened(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


async def _serve(model: Path, name: str, version: str) -> None:
    async with ModelServer(onnx.load(model), name=name, version=version) as server:
        print(server.port, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":  # python -m tests.model_server MODEL NAME VERSION: a process of its own
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("name")
    parser.add_argument("version")
    asyncio.run(_serve(**vars(parser.parse_args())))
