"""What Triton, MLServer and KServe answer, and the guard in front of each: the same or better.

The table in ``WHAT_COMES_BACK`` has, for each question, what each server says by itself and what comes back
through the guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio

import peers
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from tests.e2e.kserve_process import KServe
from tests.e2e.mlserver_process import MLServer
from tests.e2e.peer_process import PeerProcess
from tests.e2e.perf_analyzer_process import PerfAnalyzer
from tests.e2e.triton_process import Triton, write_model
from tests.guard.upstream_house import CLEAN, in_front_of, sent, tiny_repository
from tests.serving import PATIENCE_S, Client, serving
from tests.tiny_models import linear_classifier

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

Ask = Callable[[grpc.aio.Channel, str], Awaitable[str]]
Change = Callable[[pb.ModelInferRequest], object]
INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
OFTEN: Final = 1_000_000
THREE_ROWS: Final = ("--request-count", "40", "--concurrency-range", "2")


async def infer(channel: grpc.aio.Channel, model: str, change: Change, front: bytes = b"") -> str:
    """Send a request of two clean images after a change to it; return how outputs came."""
    request = sent(CLEAN[:2], model=model)
    change(request)
    message = front + request.SerializeToString()
    answer = pb.ModelInferResponse.FromString(await channel.unary_unary(INFER)(message, timeout=PATIENCE_S))
    assert answer.id == request.id
    return "raw" if answer.raw_output_contents else "typed"


def changed(change: Change) -> Ask:
    return lambda channel, model: infer(channel, model, change)


async def big(channel: grpc.aio.Channel, model: str) -> str:
    """Name the id a million times: of a field that comes again and again the last counts."""
    return await infer(channel, model, lambda request: None, b"\x1a\x05an id" * OFTEN)


def typed(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(CLEAN[:2].ravel().tolist())


def cut(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-4]


async def unknown_model_ready(channel: grpc.aio.Channel, _: str) -> str:
    answer = await pb_grpc.GRPCInferenceServiceStub(channel).ModelReady(
        pb.ModelReadyRequest(name="nobody"), timeout=PATIENCE_S
    )
    return str(answer.ready)


async def config(channel: grpc.aio.Channel, model: str) -> str:
    answer = await pb_grpc.GRPCInferenceServiceStub(channel).ModelConfig(
        pb.ModelConfigRequest(name=model), timeout=PATIENCE_S
    )
    assert (answer.config.name, list(answer.config.input[0].dims)) == (model, [3, 8, 8])
    return "given"


async def stream(channel: grpc.aio.Channel, model: str) -> str:
    """Send three requests, the second a bad one; return what became of each, in the order of the answers."""
    requests = [sent(CLEAN[:2], model=model, id=name) for name in ("a", "b", "c")]
    requests[1].raw_input_contents[0] = b"short"
    call = pb_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests), timeout=PATIENCE_S)
    answers = [answer async for answer in call]
    return " ".join(f"{one.infer_response.id}:{bool(one.error_message)}" for one in answers)


async def statistics(channel: grpc.aio.Channel, model: str) -> str:
    answer = await pb_grpc.GRPCInferenceServiceStub(channel).ModelStatistics(
        pb.ModelStatisticsRequest(name=model), timeout=PATIENCE_S
    )
    assert [one.name for one in answer.model_stats] == [model]
    return "given"


async def index(channel: grpc.aio.Channel, _: str) -> str:
    answer = await pb_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(
        pb.RepositoryIndexRequest(ready=True), timeout=PATIENCE_S
    )
    return " ".join(one.state for one in answer.models)


async def load(channel: grpc.aio.Channel, model: str) -> str:
    request = pb.RepositoryModelLoadRequest(model_name=model)
    stub = pb_grpc.GRPCInferenceServiceStub(channel)
    await stub.RepositoryModelLoad(request, timeout=PATIENCE_S)
    return "loaded"


BAD = ("INVALID_ARGUMENT", "INTERNAL", "INTERNAL")
REFUSED = ("INVALID_ARGUMENT",) * 3
NO_STREAMS = "UNIMPLEMENTED or INTERNAL"  # the client's own word for a stream that ends while it still writes
WHAT_COMES_BACK: Final[dict[str, tuple[Ask, tuple[str, ...], tuple[str, ...]]]] = {
    "is an unknown model ready": (unknown_model_ready, ("False", "UNKNOWN", "NOT_FOUND"), ("False",) * 3),
    "configuration": (config, ("given", "UNIMPLEMENTED", "UNIMPLEMENTED"), ("given",) * 3),
    "statistics": (statistics, ("given", "UNIMPLEMENTED", "UNIMPLEMENTED"), ("given",) * 3),
    "stream": (stream, ("a:False b:True c:False", ":True", NO_STREAMS), ("a:False b:True c:False",) * 3),
    "repository index": (index, ("READY", "State.READY", "UNIMPLEMENTED"), ("READY",) * 3),
    "repository load": (load, ("loaded", "loaded", "UNKNOWN"), ("UNIMPLEMENTED",) * 3),
    "raw input": (changed(lambda request: None), ("raw",) * 3, ("raw",) * 3),
    "typed input": (changed(typed), ("raw", "typed", "raw"), ("raw", "typed", "raw")),
    "more than 4 MiB": (
        big,
        ("raw", "RESOURCE_EXHAUSTED", "raw"),
        ("raw", "RESOURCE_EXHAUSTED", "raw"),
    ),
    "bad shape": (changed(lambda request: request.inputs[0].shape.append(2)), BAD, REFUSED),
    "bad datatype": (changed(lambda request: setattr(request.inputs[0], "datatype", "INT64")), BAD, REFUSED),
    "short raw contents": (changed(cut), BAD, REFUSED),
    "bad version": (
        changed(lambda request: setattr(request, "model_version", "9")),
        ("NOT_FOUND", "NOT_FOUND", "raw"),
        ("NOT_FOUND",) * 3,
    ),
    "bad input name": (
        changed(lambda request: setattr(request.inputs[0], "name", "picture")),
        ("INVALID_ARGUMENT", "raw", "raw"),
        REFUSED,
    ),
}
SERVERS = ("triton", "mlserver", "kserve")


def started(kind: str, folder: Path) -> PeerProcess:
    """Start a server with the model ``signs``."""
    home = peers.environment(kind)
    if kind == "triton":
        triton = Triton(home, folder, "signs")
        write_model(triton.repository, "signs", linear_classifier(), max_batch_size=4)
        triton.start()
        return triton
    server = {"mlserver": MLServer, "kserve": KServe}[kind](home, folder)
    server.write("signs", linear_classifier())
    server.start()
    return server


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PeerProcess]:
    server = await asyncio.to_thread(started, request.param, tmp_path_factory.mktemp(request.param))
    yield server
    await asyncio.to_thread(server.kill)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guard(server: PeerProcess, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    repository = tiny_repository(tmp_path_factory.mktemp("guard"))
    async with in_front_of(server, repository, own={"upstream_model": "signs"}) as client:
        yield client


async def outcome(ask: Ask, address: str, model: str) -> str:
    """Return what comes back, or the status."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            return await ask(channel, model)
        except grpc.aio.AioRpcError as error:
            return error.code().name


@pytest.mark.parametrize("question", WHAT_COMES_BACK)
async def test_each_servers_answer_is_kept_or_made_better(
    server: PeerProcess, guard: Client, question: str, request: pytest.FixtureRequest
) -> None:
    ask, alone, through = WHAT_COMES_BACK[question]
    which = SERVERS.index(request.node.callspec.params["server"])

    assert await outcome(ask, server.address, "signs") in alone[which].split(" or ")
    assert await outcome(ask, f"127.0.0.1:{guard.server.port}", "tiny") == through[which]


async def analysed(folder: Path, client: Client, *options: str) -> float:
    """Have perf_analyzer call the guard's model; return the requests a second that it found."""
    analyser = PerfAnalyzer(folder)
    images = ("--input-data", str(analyser.write_images("images", CLEAN)))
    address = f"127.0.0.1:{client.server.port}"
    [found] = await asyncio.to_thread(
        analyser.run, address, "tiny", *images, *options, *THREE_ROWS, limit_s=90.0
    )
    assert found.concurrency == 2
    return found.per_second


async def test_perf_analyzer_runs_in_front_of_it(guard: Client, tmp_path: Path) -> None:
    guard.count_from_now()

    assert await analysed(tmp_path, guard) > 0
    accepted = guard.counted("guard_inputs_total", "verdict")
    assert set(accepted) == {("accept",)}
    assert accepted["accept",] >= 40


async def test_perf_analyzer_streams_in_front_of_it(guard: Client, tmp_path: Path) -> None:
    guard.count_from_now()

    assert await analysed(tmp_path, guard, "--streaming") > 0
    answered = guard.counted("guard_rpcs_total", "code", method="ModelStreamInfer", model="tiny")
    assert set(answered) == {("OK",)}
    assert answered["OK",] >= 40


async def test_perf_analyzer_runs_on_the_guard_alone(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path)) as client:
        assert await analysed(tmp_path, client) > 0


async def test_perf_analyzers_own_random_bytes_are_refused_where_they_are_no_image(
    guard: Client, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{guard.server.port}"
    with pytest.raises(RuntimeError, match="row"):
        await asyncio.to_thread(PerfAnalyzer(tmp_path).run, address, "tiny", *THREE_ROWS, limit_s=90.0)
