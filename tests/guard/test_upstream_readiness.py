"""Ready as its server is, and only if that one answers as the model did that was calibrated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.guard.upstream_house import (
    BOUNDARY,
    CLEAN,
    SUSPICIOUS,
    be_patient,
    in_front_of,
    refused,
    sent,
    tiny_repository,
    trailing,
    values,
)
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, http_get, serving
from tests.tiny_models import linear_classifier

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SHORT = {"upstream_wait_s": 0.05}
MODES = pytest.mark.parametrize("check", ["local", "upstream"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(linear_classifier()) as server:
        yield server


async def readiness(client: Client) -> set[Any]:
    """Return what all the ways to ask say; one value if they agree."""
    health = health_pb2_grpc.HealthStub(client.channel)
    status = (await health.Check(health_pb2.HealthCheckRequest())).status
    http, _ = await asyncio.to_thread(http_get, client.server.metrics_port, "/readyz")
    return {
        (await client.stub.ServerReady(pb.ServerReadyRequest())).ready,
        (await client.stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready,
        status == SERVING,
        http == 200,
        client.counted("guard_ready") == {(): 1},
        client.counted("guard_upstream_ready", "model") == {("tiny",): 1},
    }


async def becomes(client: Client, ready: bool) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await readiness(client) != {ready}:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


@MODES
async def test_readiness_follows_the_server_and_comes_back_by_itself(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    async with in_front_of(upstream, repository, own={"upstream_check": check}, **SHORT) as client:
        assert await readiness(client) == {True}
        upstream.ready = False
        await becomes(client, False)
        error = await refused(client, sent())
        upstream.ready = True
        await becomes(client, True)
        await upstream.kill()
        await becomes(client, False)
        await upstream.start()
        await becomes(client, True)
        be_patient(client)
        await client.infer(sent(CLEAN))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "says that it is not ready" in error.details()
    assert trailing(error) == {"guard-upstream": "true"}


@MODES
async def test_a_guard_starts_before_its_server_does(repository: Path, check: str) -> None:
    upstream = ModelServer(linear_classifier())
    await upstream.start()
    await upstream.kill()
    async with in_front_of(upstream, repository, own={"upstream_check": check}, **SHORT) as client:
        assert await readiness(client) == {False}
        error = await refused(client, sent())
        described = await untold(client)
        await upstream.start()
        await becomes(client, True)
        be_patient(client)
        answer = await client.infer(sent())
        await upstream.kill()

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert f"model server {upstream.address} (model 'tiny')" in error.details()
    assert trailing(error) == {"guard-upstream": "true"}
    assert described is grpc.StatusCode.UNAVAILABLE
    assert values(answer.parameters)["guard_verdict"] == "accept"


async def untold(client: Client) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    return error.value.code()


async def test_a_watch_of_the_health_sees_the_server_go_and_come(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository) as client:
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
        )
        seen = [(await watch.read()).status]
        upstream.ready = False
        seen.append((await watch.read()).status)
        upstream.ready = True
        seen.append((await watch.read()).status)

    assert seen == [SERVING, NOT_SERVING, SERVING]


@MODES
async def test_another_model_than_the_calibrated_one_is_never_asked(repository: Path, check: str) -> None:
    async with (
        ModelServer(linear_classifier(seed=5)) as upstream,
        in_front_of(upstream, repository, own={"upstream_check": check}, **SHORT) as client,
    ):
        assert await readiness(client) == {False}
        error = await refused(client, sent())
        assert upstream.predictions == []
        upstream.load(linear_classifier())
        await becomes(client, True)

    assert "answers the stored image 0 with logits up to" in error.details()


async def test_a_model_that_is_exchanged_behind_the_guard_is_noticed_by_its_version(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository, upstream_poll_s=1000.0, **SHORT) as client:
        assert (await client.infer(sent(model_version="1"))).model_version == "1"
        upstream.version = "2"
        upstream.load(linear_classifier(seed=5))
        error = await refused(client, sent())
        again = await refused(client, sent())
        upstream.load(linear_classifier())
        await becomes(client, True)
        be_patient(client)
        assert (await client.infer(sent(model_version="2"))).model_version == "2"

    assert error.code() is again.code() is grpc.StatusCode.UNAVAILABLE
    assert "answered in version '2', where '1' was compared with the calibrated model" in error.details()
    assert "could not be asked within 0.050 s" in again.details()


async def test_another_model_behind_a_restart_that_nobody_saw_is_noticed_by_the_connection(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository, upstream_poll_s=1000.0, **SHORT) as client:
        await client.infer(sent())
        await upstream.kill()
        upstream.load(linear_classifier(seed=5))
        upstream.calls.clear()
        await upstream.start()
        error = await refused(client, sent())
        asked_meanwhile = list(upstream.predictions)
        upstream.load(linear_classifier())
        await becomes(client, True)
        be_patient(client)
        await client.infer(sent())

    assert (error.code(), asked_meanwhile) == (grpc.StatusCode.UNAVAILABLE, [])


async def test_a_server_that_knows_no_such_model_is_told_with_its_words(tmp_path: Path) -> None:
    nobody = grpc.aio.server()
    port = nobody.add_insecure_port("127.0.0.1:0")
    await nobody.start()
    own = {"tiny": {"upstream": f"127.0.0.1:{port}"}}
    async with serving(tiny_repository(tmp_path), models=own, **SHORT) as client:
        error = await refused(client, sent())
    await nobody.stop(None)

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert f"model server 127.0.0.1:{port} (model 'tiny') says UNIMPLEMENTED of its model" in error.details()


async def test_a_model_of_our_own_is_served_while_the_server_of_another_is_away(
    repository: Path, upstream: ModelServer
) -> None:
    write_tiny_artifact(repository, "ours", boundary_bits=BOUNDARY, probed=True)
    await upstream.kill()
    async with in_front_of(upstream, repository, **SHORT) as client:
        answer = await client.infer(sent(CLEAN[:1], model="ours"))
        error = await refused(client, sent(CLEAN[:1]))
        ours, theirs = [
            (await client.stub.ModelReady(pb.ModelReadyRequest(name=name))).ready for name in ("ours", "tiny")
        ]

    assert (values(answer.parameters)["guard_verdict"], ours, theirs) == ("accept", True, False)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert client.infers_counted() == {("ours", "OK"): 1, ("tiny", "UNAVAILABLE"): 1}


async def test_a_server_that_takes_other_tensors_is_not_asked(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.extra_inputs = ("temperature",)
    async with in_front_of(upstream, repository, **SHORT) as client:
        error = await refused(client, sent())

    assert (
        "takes [('images', 'FP32'), ('temperature', 'FP32')], expected [('images', 'FP32')]"
        in error.details()
    )
    assert upstream.calls == []


async def test_a_version_whose_answers_differ_from_the_servers_is_not_swapped_in(
    repository: Path, upstream: ModelServer
) -> None:
    write_tiny_artifact(repository, model=linear_classifier(seed=5), boundary_bits=BOUNDARY, probed=True)
    write_tiny_artifact(repository, boundary_bits=0.0, probed=True)
    async with in_front_of(upstream, repository) as client:
        from guard.errors import CandidateError

        with pytest.raises(CandidateError, match="the model answers the stored image 0 with logits"):
            await client.server.control.swap("tiny", "2")
        assert await readiness(client) == {True}
        await client.server.control.swap("tiny", "1")
        error = await refused(client, sent(SUSPICIOUS[:1]))
        await client.server.control.swap("tiny", "3")
        answer = await client.infer(sent(SUSPICIOUS[:1]))

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert values(answer.parameters)["guard_verdict"] == "accept"


async def test_a_request_is_held_back_while_there_is_no_connection_and_then_sent_once(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository) as client:
        await upstream.kill()
        await becomes(client, False)
        waiting = asyncio.ensure_future(client.infer(sent()))
        await upstream.start()
        answer = await waiting

    assert answer.id == "an id"
    assert len(upstream.predictions) == 1
    assert client.counted("guard_upstream_retries_total", "model") == {("tiny",): 1}


async def test_what_was_sent_when_the_server_died_is_not_sent_again(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository) as client:
        upstream.dies = True
        error = await refused(client, sent())
        await upstream.start()
        await client.infer(sent())

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(error) == {"guard-upstream": "true"}
    assert len(upstream.predictions) == 2
