"""Streams through a whole guard: verdicts, counts, a model server behind it, and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from tests.guard.test_pass_through import beside
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, in_front_of, sent, tiny_repository, values
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, serving
from tests.tiny_models import linear_classifier

METADATA = (("x-tenant", "seven"),)


async def streamed(client: Client, *requests: pb.ModelInferRequest, **options: Any) -> list[Any]:
    call = client.stub.ModelStreamInfer(iter(requests), timeout=PATIENCE_S, **options)
    return [answer async for answer in call]


def verdict_of(answer: pb.ModelStreamInferResponse) -> str:
    return str(values(answer.infer_response.parameters)["guard_verdict"])


async def test_every_message_is_checked_told_and_counted_by_itself(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path), quarantine_dir=tmp_path / "quarantine") as client:
        answers = await streamed(
            client,
            *(sent(CLEAN[number : number + 1], id=f"clean {number}") for number in range(4)),
            sent(SUSPICIOUS[:1], id="suspicious"),
            sent(CLEAN[:2], id="last"),
        )
        [said] = (await client.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"))).model_stats
        calls = client.counted("guard_rpcs_total", "model", "code", method="ModelStreamInfer")
        verdicts = client.counted("guard_inputs_total", "verdict")
    kept = [path for path in (tmp_path / "quarantine").rglob("*") if path.is_file()]

    assert [verdict_of(answer) for answer in answers] == [*["accept"] * 4, "reject", "accept"]
    assert answers[4].error_message.startswith("[StatusCode.PERMISSION_DENIED] rejected: row 0 of 1 looks")
    assert not answers[4].infer_response.outputs
    assert calls == {("tiny", "OK"): 5, ("tiny", "PERMISSION_DENIED"): 1}
    assert verdicts == {("accept",): 6, ("reject",): 1}
    assert (said.inference_stats.success.count, said.inference_stats.fail.count) == (5, 1)
    assert kept


async def test_a_model_server_gets_the_bytes_of_each_message_and_the_streams_metadata(tmp_path: Path) -> None:
    requests = [sent(CLEAN[number : number + 1], id=f"id-{number}") for number in range(len(CLEAN))]
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path)) as client,
    ):
        answers = await streamed(client, *requests, metadata=METADATA)
        [clean, triggered] = await streamed(
            client, sent(CLEAN[:1], id="clean"), sent(SUSPICIOUS[:1], id="bad")
        )

    assert [answer.error_message for answer in answers] == [""] * len(CLEAN)
    assert [answer.infer_response.id for answer in answers] == [one.id for one in requests]
    assert {verdict_of(answer) for answer in answers} == {"accept"}
    assert all(answer.infer_response.parameters["theirs"].int64_param == 7 for answer in answers)
    sent_on = {call.request.id: call for call in upstream.predictions}
    assert all(sent_on[one.id].message == one.SerializeToString() for one in requests)
    assert {sent_on[one.id].metadata["x-tenant"] for one in requests} == {"seven"}
    assert (clean.error_message, verdict_of(triggered)) == ("", "reject")


async def test_what_a_model_server_refuses_is_told_in_its_words_and_as_its_fault(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path)) as client,
    ):
        upstream.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "their words", ())
        [refused] = await streamed(client, sent(CLEAN[:1]))
        upstream.refusal = None
        [answered] = await streamed(client, sent(CLEAN[:1]))

    assert refused.error_message == "[StatusCode.FAILED_PRECONDITION] their words"
    assert values(refused.infer_response.parameters)["guard_upstream"] == "true"
    assert verdict_of(answered) == "accept"


@pytest.mark.parametrize("model", ["tiny", "unlisted"])
async def test_a_stream_is_no_way_around(tmp_path: Path, model: str) -> None:
    """Of guarded and of passed-through models each message goes the way of a call."""
    in_memory = sent(CLEAN[:1], model=model)
    in_memory.inputs[0].parameters["shared_memory_region"].string_param = "theirs"
    async with (
        ModelServer(linear_classifier(), name="words") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        passed = await streamed(client, sent(SUSPICIOUS[:1], model="words", id="passed"))
        refused = await streamed(client, sent(SUSPICIOUS[:1], model=model), in_memory)

    assert [verdict_of(answer) for answer in passed] == ["unguarded"]
    assert all(answer.error_message and not answer.infer_response.outputs for answer in refused)
    assert [call.request.id for call in upstream.predictions] == ["passed"]


async def test_an_idle_stream_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path), drain_timeout_s=10_000.0) as client:
        call = client.stub.ModelStreamInfer()
        await call.write(sent(CLEAN[:1], id="before"))
        answer = await call.read()
        async with asyncio.timeout(PATIENCE_S):
            await client.server.stop()
            code, words = await call.code(), await call.details()

    assert answer.infer_response.id == "before"
    assert code is grpc.StatusCode.UNAVAILABLE
    assert words.startswith("the server is shutting down")


async def test_streams_have_to_leave_room_for_calls(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path), max_concurrent_requests=4) as client:
        calls = [client.stub.ModelStreamInfer() for _ in range(2)]
        for call in calls:
            await call.write(sent(CLEAN[:1]))
            await call.read()
        refused = client.stub.ModelStreamInfer(iter([sent(CLEAN[:1])]), timeout=PATIENCE_S)

        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert values((await client.infer(sent())).parameters)["guard_verdict"] == "accept"
        for call in calls:
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        assert len(await streamed(client, sent())) == 1
