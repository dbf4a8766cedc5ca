"""In front of a model server: the request goes on as it came, the answer comes back with a verdict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fake_classifier import GatedClassifier

from guard.rpc.pb import open_inference_pb2 as pb
from tests.guard.upstream_house import (
    BOUNDARY,
    CLEAN,
    SUSPICIOUS,
    hung_up_on,
    in_front_of,
    refused,
    sent,
    tiny_repository,
    trailing,
    values,
)
from tests.model_server import ModelServer
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S, hold_devices
from tests.tiny_models import linear_classifier

MODES = pytest.mark.parametrize("check", ["local", "upstream"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(linear_classifier()) as server:
        yield server


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GatedClassifier]]:
    """The check's device is held by the test."""
    devices: list[GatedClassifier] = []

    def hold(classifier: Any) -> GatedClassifier:
        devices.append(GatedClassifier(classifier))
        return devices[-1]

    hold_devices(monkeypatch, hold)
    yield devices
    for device in devices:
        device.let_all_go()


@MODES
async def test_the_bytes_go_on_as_they_came_and_the_answer_comes_back_with_a_verdict(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    request = sent()
    request.parameters["priority"].int64_param = 3
    async with in_front_of(upstream, repository, own={"upstream_check": check}) as client:
        answer = await client.infer(request)

    [call] = upstream.predictions
    assert call.message == request.SerializeToString()
    assert (answer.id, answer.model_name, answer.model_version) == ("an id", "tiny", "1")
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 10)
    np.testing.assert_allclose(logits, linear_logits(CLEAN[:2]), atol=1e-4)
    assert answer.outputs[0].parameters["of_the_output"].bool_param is True
    said = values(answer.parameters)
    assert (said["theirs"], said["guard_verdict"]) == (7, "accept")
    assert set(said) == {"theirs", "guard_verdict", "guard_passes", "guard_score", "guard_p_value"}
    assert client.counted("guard_inputs_total", "verdict") == {("accept",): 2}
    assert client.counted("guard_upstream_calls_total", "code", purpose="predict") == {("OK",): 1}


@MODES
async def test_a_suspicious_input_gets_no_answer_and_the_refusal_is_the_guards(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    async with in_front_of(upstream, repository, own={"upstream_check": check}) as client:
        error = await refused(client, sent(np.concatenate([CLEAN[:1], SUSPICIOUS[:1]])))

    assert (error.code(), trailing(error)["guard-rows"]) == (grpc.StatusCode.PERMISSION_DENIED, "1")
    assert "guard-upstream" not in trailing(error)
    assert client.counted("guard_inputs_total", "verdict") == {("accept",): 1, ("reject",): 1}


@MODES
async def test_a_flagged_input_is_answered_by_the_server(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    async with in_front_of(upstream, repository, own={"upstream_check": check}, policy="flag") as client:
        answer = await client.infer(sent(SUSPICIOUS))

    assert values(answer.parameters)["guard_verdict"] == "flag"
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 10)
    np.testing.assert_allclose(logits, linear_logits(SUSPICIOUS), atol=1e-4)


async def test_an_answer_that_is_there_before_the_check_waits_for_it(
    repository: Path, upstream: ModelServer, held: list[GatedClassifier]
) -> None:
    async with in_front_of(upstream, repository) as client:
        waiting = asyncio.ensure_future(refused(client, sent(SUSPICIOUS[:1])))
        call = await upstream.arrival()
        await call.ended.wait()
        await held[0].next_call()
        assert not waiting.done()
        held[0].let_all_go()
        error = await waiting

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_rejected_input_is_refused_at_once_and_its_call_to_the_server_left_to_end(
    repository: Path, upstream: ModelServer, held: list[GatedClassifier]
) -> None:
    async with in_front_of(upstream, repository) as client:
        upstream.open.clear()
        waiting = asyncio.ensure_future(refused(client, sent(SUSPICIOUS[:1])))
        call = await upstream.arrival()
        held[0].let_all_go()
        error = await waiting
        assert not call.ended.is_set()
        upstream.open.set()
        await asyncio.wait_for(call.ended.wait(), PATIENCE_S)
        assert (await client.infer(sent())).id == "an id"

    assert (error.code(), call.cancelled) == (grpc.StatusCode.PERMISSION_DENIED, False)


async def test_under_monitor_the_answer_leaves_before_the_check_which_is_counted_after(
    repository: Path, upstream: ModelServer, held: list[GatedClassifier]
) -> None:
    async with in_front_of(upstream, repository, policy="monitor") as client:
        answer = await client.infer(sent(SUSPICIOUS[:1], outputs=named("logits", "guard_verdict")))
        held[0].let_all_go()
        async with asyncio.timeout(PATIENCE_S):
            while not client.counted("guard_inputs_total"):
                await client.stub.ServerLive(pb.ServerLiveRequest())

    assert values(answer.parameters) == {"theirs": 7, "guard_verdict": "pending"}
    assert [output.name for output in answer.outputs] == ["logits", "guard_verdict"]
    assert answer.raw_output_contents[1] == b"\x07\x00\x00\x00pending"
    assert client.counted("guard_inputs_total", "verdict") == {("flag",): 1}


async def test_under_monitor_a_full_line_does_not_keep_the_answer_back(
    repository: Path, upstream: ModelServer, held: list[GatedClassifier]
) -> None:
    settings = {"policy": "monitor", "max_queue_rows": 2, "max_request_rows": 2}
    async with in_front_of(upstream, repository, **settings) as client:
        await client.infer(sent(CLEAN[:2]))
        await held[0].next_call()  # not answered yet as far as the line knows
        answer = await client.infer(sent(CLEAN[2:4]))
        counted = client.counted("guard_uncheckable_inputs_total", "reason", "outcome")
        held[0].let_all_go()

    assert counted == {("queue_full", "answered"): 2}
    assert values(answer.parameters) == {"theirs": 7, "guard_verdict": "unchecked", "guard_passes": 0}


@MODES
async def test_what_cannot_be_checked_is_not_sent_on(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    images = CLEAN[:2].copy()
    images[1, 0, 0, 0] = np.nan
    async with in_front_of(upstream, repository, own={"upstream_check": check}) as client:
        error = await refused(client, sent(images))
        assert (error.code(), upstream.predictions) == (grpc.StatusCode.INVALID_ARGUMENT, [])
        assert client.counted("guard_uncheckable_inputs_total", "reason", "outcome") == {
            ("non_finite", "refused"): 1
        }


async def test_what_cannot_be_checked_is_sent_on_where_the_operator_chose_so(
    repository: Path, upstream: ModelServer
) -> None:
    images = np.concatenate([CLEAN[:1], CLEAN[:1] + 5])
    async with in_front_of(upstream, repository, on_uncheckable="answer") as client:
        answer = await client.infer(sent(images))

    assert values(answer.parameters)["guard_verdict"] == "unchecked"
    assert client.counted("guard_inputs_total", "verdict") == {("accept",): 1, ("unchecked",): 1}


def named(*names: str) -> list[pb.ModelInferRequest.InferRequestedOutputTensor]:
    return [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]


async def test_outputs_of_the_guard_are_added_and_not_asked_of_the_server(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository) as client:
        answer = await client.infer(sent(outputs=named("guard_verdict", "logits", "guard_passes")))
        alone = await client.infer(sent(outputs=named("guard_score")))

    both, none = (call.request for call in upstream.predictions)
    assert [output.name for output in both.outputs] == ["logits"]
    assert both.raw_input_contents[0] == CLEAN[:2].astype("<f4").tobytes()
    assert [output.name for output in answer.outputs] == ["logits", "guard_verdict", "guard_passes"]
    assert answer.raw_output_contents[1] == b"\x06\x00\x00\x00accept" * 2
    assert list(none.outputs) == []
    assert [output.name for output in alone.outputs] == ["guard_score"]
    scores = np.frombuffer(alone.raw_output_contents[0], "<f4")
    assert scores.shape == (2,)
    assert (scores < -BOUNDARY / 2).all()


async def test_typed_contents_come_back_typed_and_so_do_the_guards_outputs(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.typed = True
    request = sent(outputs=named("logits", "guard_verdict", "guard_passes"))
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(CLEAN[:2].ravel().tolist())
    async with in_front_of(upstream, repository) as client:
        answer = await client.infer(request)

    assert list(answer.raw_output_contents) == []
    logits = np.array(answer.outputs[0].contents.fp32_contents).reshape(2, 10)
    np.testing.assert_allclose(logits, linear_logits(CLEAN[:2]), atol=1e-4)
    assert list(answer.outputs[1].contents.bytes_contents) == [b"accept"] * 2
    assert sum(answer.outputs[2].contents.int_contents) == values(answer.parameters)["guard_passes"]


async def test_another_name_and_version_are_said_behind_the_original_bytes(repository: Path) -> None:
    async with ModelServer(linear_classifier(), name="signs", version="3") as upstream:
        own = {"upstream_model": "signs", "upstream_version": "3"}
        async with in_front_of(upstream, repository, own=own) as client:
            request = sent()
            answer = await client.infer(request)
            versioned = await client.infer(sent(model_version="3"))
            error = await refused(client, sent(model_version="1"))

    first, second = upstream.predictions
    assert first.message.startswith(request.SerializeToString())
    assert (first.request.model_name, first.request.model_version) == ("signs", "3")
    assert list(first.request.raw_input_contents) == list(request.raw_input_contents)
    assert (answer.model_name, versioned.model_name, answer.model_version) == ("tiny", "tiny", "3")
    assert second.request.model_version == "3"
    assert (error.code(), error.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "version '1' of model 'tiny' is not served here; loaded: '3'",
    )


async def test_metadata_passes_both_ways_but_for_what_is_meant_for_one_hop(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.answer_metadata = (("x-model", "a"), ("x-bin", b"\x00\xff")), (("x-cost", "3"),)
    given = (("x-request-id", "17"), ("authorization", "Bearer t"), ("trace-bin", b"\x01\xfe"), ("te2", "x"))
    async with in_front_of(upstream, repository) as client:
        call = client.stub.ModelInfer(sent(), metadata=given, timeout=PATIENCE_S)
        await call
        before, after = dict(await call.initial_metadata()), dict(await call.trailing_metadata())

    seen = upstream.predictions[0].metadata
    assert {key: seen[key] for key, _ in given} == dict(given)
    assert "grpc-python-asyncio" in str(seen["user-agent"])
    assert str(seen["user-agent"]).count("grpc-python") == 1
    assert (before, after) == ({"x-model": "a", "x-bin": b"\x00\xff"}, {"x-cost": "3"})


async def test_a_server_does_not_speak_for_the_guard(repository: Path, upstream: ModelServer) -> None:
    upstream.parameters = {"guard_score": "fine", "guard_audited": "yes"}
    upstream.answer_metadata = (), (("guard-verdict", "accept"),)
    images = np.concatenate([CLEAN[:1] + 5])
    async with in_front_of(upstream, repository, on_uncheckable="answer") as client:
        call = client.stub.ModelInfer(sent(images), timeout=PATIENCE_S)
        answer, after = await call, await call.trailing_metadata()

    assert values(answer.parameters) == {"theirs": 7, "guard_verdict": "unchecked", "guard_passes": 0}
    assert dict(after) == {}


async def test_a_server_may_be_behind_a_unix_socket(repository: Path, tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), socket=tmp_path / "server.sock") as upstream,
        in_front_of(upstream, repository) as client,
    ):
        answer = await client.infer(sent())

    assert upstream.address.startswith("unix:/")
    assert values(answer.parameters)["guard_verdict"] == "accept"


async def test_the_time_that_is_left_is_passed_on(repository: Path, upstream: ModelServer) -> None:
    async with in_front_of(upstream, repository, request_timeout_s=1000.0) as client:
        await client.infer(sent(), timeout=500.0)
        await client.stub.ModelInfer(sent())

    callers, ours = (call.time_remaining_s for call in upstream.predictions)
    assert callers is not None
    assert ours is not None
    assert 0 < callers <= 510  # gRPC rounds up
    assert 510 < ours <= 1020


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS]
)
async def test_what_the_server_says_against_a_request_comes_back_as_it_is(
    repository: Path, upstream: ModelServer, code: grpc.StatusCode
) -> None:
    upstream.refusal = (code, "the words of the server", (("x-why", "7"),))
    async with in_front_of(upstream, repository) as client:
        error = await refused(client, sent())
        upstream.refusal = None
        assert (await client.infer(sent())).id == "an id"

    assert (error.code(), error.details()) == (code, "the words of the server")
    assert trailing(error) == {"x-why": "7", "guard-upstream": "true"}
    assert client.counted("guard_upstream_calls_total", "code", purpose="predict") == {
        (code.name,): 1,
        ("OK",): 1,
    }


@MODES
async def test_the_call_to_the_server_goes_on_where_its_caller_hangs_up(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    async with in_front_of(upstream, repository, own={"upstream_check": check}) as client:
        arrived = await hung_up_on(client, upstream, sent())
        async with asyncio.timeout(PATIENCE_S):
            while not client.counted("guard_shed_requests_total", "reason").get(("cancelled",)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not arrived.ended.is_set()
        upstream.open.set()
        await asyncio.wait_for(arrived.ended.wait(), PATIENCE_S)
        assert (await client.infer(sent())).id == "an id"
        async with asyncio.timeout(PATIENCE_S):  # it is counted once its answer has come, which nobody sees
            while sum(client.counted("guard_upstream_calls_total", purpose="predict").values()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    assert not any(one.cancelled for one in upstream.calls)
    assert client.counted("guard_upstream_calls_total", "code", purpose="predict") == {("OK",): 2}


async def test_an_answer_that_is_none_is_refused(repository: Path, upstream: ModelServer) -> None:
    upstream.raw = b"\xff\xff\xff"
    async with in_front_of(upstream, repository) as client:
        error = await refused(client, sent())

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "answered with something that is no ModelInferResponse" in error.details()
    assert trailing(error) == {"guard-upstream": "true"}


async def test_metadata_and_configuration_are_the_servers_under_our_name(repository: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="signs", version="3", max_batch_size=4) as upstream,
        in_front_of(upstream, repository, own={"upstream_model": "signs"}) as client,
    ):
        metadata = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        config = (await client.stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config

    assert (metadata.name, list(metadata.versions), metadata.platform) == ("tiny", ["3"], "test")
    assert [output.name for output in metadata.outputs] == ["logits"]
    assert (config.name, config.max_batch_size) == ("tiny", 4)
    assert config.parameters["kept"].string_value == "as it is"


async def test_a_configuration_is_made_up_where_the_server_has_none(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.config = False
    async with in_front_of(upstream, repository, own={"upstream_max_batch_size": 5}) as client:
        config = (await client.stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config

    assert (config.name, config.max_batch_size) == ("tiny", 5)
    assert (config.input[0].name, list(config.input[0].dims)) == ("images", [3, 8, 8])
    assert config.output[0].data_type == pb.TYPE_FP32
