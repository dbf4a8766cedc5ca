"""The server, whole and in this process: what it opens, what it says, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fake_classifier import GatedClassifier
from grpc_health.v1 import health_pb2, health_pb2_grpc

import guard.server
from guard.errors import ArtifactError, MissingFileError, SettingsError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.scheduler import CheckedClassifier
from guard.server import GuardServer
from tests.artifacts import write_tiny_artifact
from tests.reference_check import images_and_boundary
from tests.serving import PATIENCE_S, Client, hold_devices, http_get, infer_request, serving, settings_for

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert {name for name in left if name.startswith(("device-", "metrics-"))} == set()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "models", boundary_bits=BOUNDARY)
    return tmp_path / "models"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GatedClassifier]]:
    """Every model's device is held by the test; here they are, in the order of loading."""
    devices: list[GatedClassifier] = []

    def hold(classifier: CheckedClassifier) -> GatedClassifier:
        devices.append(GatedClassifier(classifier))
        return devices[-1]

    hold_devices(monkeypatch, hold)
    yield devices
    for device in devices:
        device.let_all_go()


async def health_of(client: Client, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(client.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
    status: int = answer.status
    return status


async def get(client: Client, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(http_get, client.server.metrics_port, path)


async def test_it_answers_on_both_ports_and_says_it_is_ready(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "guard.server")
    async with serving(repository, policy="flag") as client:
        answer = await client.infer(infer_request(CLEAN[:2]))
        assert answer.parameters["guard_verdict"].string_param == "accept"
        assert (await client.stub.ServerReady(pb.ServerReadyRequest())).ready is True
        assert (await client.stub.ModelReady(pb.ModelReadyRequest(name="tiny", version="1"))).ready is True
        assert (await get(client, "/healthz"), await get(client, "/readyz")) == ((200, "ok\n"), (200, "ok\n"))
        assert (await health_of(client), await health_of(client, "inference.GRPCInferenceService")) == (
            *(SERVING, SERVING),
        )
        status, text = await get(client, "/metrics")
        assert status == 200
        assert 'guard_inputs_total{model="tiny",verdict="accept"} 2.0' in text
        port, metrics_port = client.server.port, client.server.metrics_port

    loaded, ready, stopped = caplog.records
    assert (loaded.getMessage(), loaded.model, loaded.version, loaded.device, loaded.policy) == (
        *("model loaded", "tiny", "1", "cpu", "flag"),
    )
    assert (ready.getMessage(), ready.port, ready.metrics_port, ready.models) == (
        *("ready", port, metrics_port, ["tiny"]),
    )
    assert stopped.getMessage() == "stopped"


async def test_the_gauges_say_what_is_served(repository: Path) -> None:
    async with serving(repository, policy="monitor", max_queue_rows=77) as client:
        assert client.counted("guard_boundary_bits") == {(): pytest.approx(BOUNDARY)}
        assert client.counted("guard_certified_frr_ratio") == {(): 0.01}
        assert client.counted("guard_queue_limit_rows") == {(): 77}
        assert client.counted("guard_ready") == {(): 1}
        [labels] = client.counted("guard_model_info", "model", "version", "blend", "policy")
        assert labels == ("tiny", "1", "add", "monitor")

    assert client.counted("guard_ready") == {}


async def test_it_describes_itself_and_its_model(repository: Path) -> None:
    async with serving(repository, max_request_rows=5) as client:
        server = await client.stub.ServerMetadata(pb.ServerMetadataRequest())
        model = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        config = (await client.stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config

    assert server.name == "inference-guard"
    assert (list(model.versions), model.inputs[0].name, list(model.inputs[0].shape)) == (
        *(["1"], "images", [-1, 3, 8, 8]),
    )
    assert (config.max_batch_size, list(config.output[0].dims)) == (5, [10])


async def test_each_model_has_its_own_policy(repository: Path) -> None:
    write_tiny_artifact(repository, "strict", boundary_bits=BOUNDARY)
    models = {"tiny": {"policy": "flag"}}

    async with serving(repository, models=models) as client:
        flagged = await client.infer(infer_request(SUSPICIOUS[:1]))
        status, _ = await client.refusal(infer_request(SUSPICIOUS[:1], model="strict"))

    assert flagged.parameters["guard_verdict"].string_param == "flag"
    assert status is grpc.StatusCode.PERMISSION_DENIED
    assert client.counted("guard_inputs_total", "model", "verdict") == {
        ("tiny", "flag"): 1,
        ("strict", "reject"): 1,
    }


async def test_the_latest_version_is_served(repository: Path) -> None:
    write_tiny_artifact(repository, boundary_bits=0.0)

    async with serving(repository) as client:
        answer = await client.infer(infer_request(SUSPICIOUS[:1]))

    assert (answer.model_version, answer.parameters["guard_verdict"].string_param) == ("2", "accept")


async def test_probes_are_answered_while_models_load(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = guard.server.load_model
    loading, may_load = threading.Event(), threading.Event()

    def load_when_told(*arguments: object, **hooks: object) -> object:
        loading.set()
        assert may_load.wait(PATIENCE_S)
        return load(*arguments, **hooks)

    monkeypatch.setattr(guard.server, "load_model", load_when_told)
    server = GuardServer(settings_for(repository))
    starting = asyncio.create_task(server.start())
    assert await asyncio.to_thread(loading.wait, PATIENCE_S)

    before = [
        await asyncio.to_thread(http_get, server.metrics_port, path) for path in ("/healthz", "/readyz")
    ]
    may_load.set()
    await starting
    after = await asyncio.to_thread(http_get, server.metrics_port, "/readyz")
    await server.stop()

    assert (before, after) == ([(200, "ok\n"), (503, "not ok\n")], (200, "ok\n"))


async def test_stopping_answers_what_was_accepted_and_reports_not_ready_meanwhile(
    repository: Path, held: list[GatedClassifier]
) -> None:
    server = GuardServer(settings_for(repository, policy="flag"))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(server, channel, health_pb2_grpc.HealthStub(channel))
        watch = client.stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert (await watch.read()).status == SERVING
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        accepted = [
            infer(infer_request(image[None]).SerializeToString(), timeout=PATIENCE_S) for image in CLEAN
        ]
        await held[0].next_call()
        await queue_holds(client, len(CLEAN))

        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == NOT_SERVING
        assert await get(client, "/readyz") == (503, "not ok\n")
        assert not stopping.done()
        held[0].let_all_go()
        answers = [pb.ModelInferResponse.FromString(await call) for call in accepted]
        await stopping

    verdicts = {answer.parameters["guard_verdict"].string_param for answer in answers}
    assert (len(answers), verdicts) == (6, {"accept"})
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(http_get, server.metrics_port, "/healthz")


async def test_a_client_that_watches_for_ever_does_not_hold_up_the_stop(repository: Path) -> None:
    server = GuardServer(settings_for(repository))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        known, unknown = (stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "nope"))
        streams = [aiter(known), aiter(unknown)]
        first = [(await anext(stream)).status for stream in streams]

        async with asyncio.timeout(PATIENCE_S):
            await server.stop()

        rest = [[answer.status async for answer in stream] for stream in streams]

    assert first == [SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]
    assert rest == [[NOT_SERVING], []]
    assert await known.code() is grpc.StatusCode.OK
    assert (
        server.registry.get_sample_value("guard_rpcs_total", {"method": "Watch", "model": "", "code": "OK"})
        == 2
    )


async def test_the_health_of_a_service_that_is_not_here_is_not_found(repository: Path) -> None:
    async with serving(repository) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_of(client, "nope")

        assert await health_of(client) == SERVING

    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "service 'nope' is not known; expected one of '', 'inference.GRPCInferenceService'",
    )
    assert client.counted("guard_rpcs_total", "method", "code") == {
        ("Check", "NOT_FOUND"): 1,
        ("Check", "OK"): 1,
    }


async def queue_holds(client: Client, rows: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while client.counted("guard_queue_rows") != {(): rows}:
            await get(client, "/healthz")  # a round trip, while the calls arrive


async def test_stopping_does_not_wait_longer_than_it_was_told(
    repository: Path, held: list[GatedClassifier]
) -> None:
    server = GuardServer(settings_for(repository, drain_timeout_s=0.05))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(server, channel, health_pb2_grpc.HealthStub(channel))
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        stuck = infer(infer_request(CLEAN[:1]).SerializeToString(), timeout=PATIENCE_S)
        await held[0].next_call()
        await queue_holds(client, 1)

        stopping = asyncio.create_task(server.stop())
        with pytest.raises(grpc.aio.AioRpcError) as cut_off:
            await stuck
        held[0].let_all_go()
        await stopping

    assert cut_off.value.code() is grpc.StatusCode.UNAVAILABLE
    assert client.counted("guard_shed_requests_total", "reason") == {("cancelled",): 1}


async def test_more_calls_at_a_time_than_it_takes_in_are_refused(
    repository: Path, held: list[GatedClassifier]
) -> None:
    async with serving(repository, max_concurrent_requests=1) as client:
        running = asyncio.ensure_future(client.infer(infer_request(CLEAN[:1])))
        await held[0].next_call()

        status, _ = await client.refusal(infer_request(CLEAN[:1]))

        held[0].let_all_go()
        assert (await running).parameters["guard_verdict"].string_param == "accept"
        assert await health_of(client) == SERVING

    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_method_that_is_not_served_is_refused_with_words_however_it_is_called(
    repository: Path,
) -> None:
    async with serving(repository) as client:
        unary = client.channel.unary_unary("/made.Up/Name")(bytes(100_000), timeout=PATIENCE_S)
        silent = client.channel.stream_stream("/made.Up/Name")(timeout=PATIENCE_S)
        refused = [(await call.code(), await call.details()) for call in (unary, silent)]

    words = "method '/made.Up/Name' is not served; ask for the server's metadata"
    assert refused == [(grpc.StatusCode.UNIMPLEMENTED, words)] * 2


async def test_checks_of_what_was_answered_do_not_hold_up_the_stop(
    repository: Path, held: list[GatedClassifier]
) -> None:
    server = GuardServer(settings_for(repository, policy="monitor", drain_timeout_s=0.05))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(server, channel, None)
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call = infer(infer_request(CLEAN[:2]).SerializeToString(), timeout=PATIENCE_S)
        await held[0].next_call()
        held[0].let_one_go()
        await call
        await held[0].next_call()

        await asyncio.wait_for(server.stop(), PATIENCE_S / 2)  # the device is inside its call all the time

    held[0].let_all_go()
    for thread in threading.enumerate():
        if thread.name.startswith("device-"):
            await asyncio.to_thread(thread.join, PATIENCE_S)
    assert client.counted("guard_inputs_total", "verdict") == {("unchecked",): 2}


def free_port_that_is_taken() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


async def test_a_taken_grpc_port_is_named_and_nothing_stays_open(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with free_port_that_is_taken() as taken:
        port = taken.getsockname()[1]
        server = GuardServer(settings_for(repository, port=port))
        with pytest.raises(SettingsError) as refused:
            await server.start()

    assert str(refused.value) == (
        f"cannot listen on port {port} of 127.0.0.1 (setting 'port': Address already in use); choose another"
    )
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(http_get, server.metrics_port, "/healthz")


async def test_a_taken_metrics_port_is_named(repository: Path) -> None:
    with free_port_that_is_taken() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as refused:
            await GuardServer(settings_for(repository, metrics_port=port)).start()

    assert str(refused.value).startswith(f"metrics_port {port} cannot be listened on at host '127.0.0.1': ")


async def test_a_damaged_model_keeps_the_whole_server_from_starting(repository: Path) -> None:
    (write_tiny_artifact(repository, "zebra") / "overlays.npy").unlink()

    with pytest.raises(MissingFileError, match=r"zebra/1/overlays\.npy is missing"):
        await GuardServer(settings_for(repository)).start()


async def test_settings_for_a_model_that_is_not_there_are_refused_before_anything_is_loaded(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard.server, "load_model", lambda *_, **__: pytest.fail("loaded"))

    with pytest.raises(SettingsError) as refused:
        await GuardServer(settings_for(repository, models={"cats": {"policy": "flag"}})).start()

    assert str(refused.value) == (
        f"settings name the model 'cats', which is not in {repository}; there are ['tiny']"
    )


async def test_an_empty_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no model"):
        await GuardServer(settings_for(tmp_path)).start()


async def test_it_listens_on_ipv6(repository: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = GuardServer(settings_for(repository, host="::1"))
    await server.start()
    async with grpc.aio.insecure_channel(f"[::1]:{server.port}") as channel:
        client = Client(server, channel, None)
        assert await health_of(client) == SERVING
    await server.stop()
