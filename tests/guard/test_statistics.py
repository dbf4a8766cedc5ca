"""ModelStatistics: what requests came to, by model and version, beside what a model server says of itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fake_dataplane import COUNTS

from guard.dataplane.statistics import Statistics
from guard.messages import InferRequest, InferResponse, ModelCounts, Relayed, Tensor, TensorSpec, TotalTime
from guard.rpc.listing import encode_statistics
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.guard.test_pass_through import beside, to_words
from tests.guard.upstream_house import (
    BOUNDARY,
    CLEAN,
    SUSPICIOUS,
    in_front_of,
    refused,
    sent,
    tiny_repository,
)
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, serving
from tests.tiny_models import linear_classifier

TWO_ROWS = InferRequest("m", (Tensor("x", "FP32", np.zeros((2, 4), np.float32)),))


async def statistics(client: Client, name: str = "tiny", version: str = "") -> list[pb.ModelStatistics]:
    answer = await client.stub.ModelStatistics(pb.ModelStatisticsRequest(name=name, version=version))
    return list(answer.model_stats)


# Counting


def test_what_is_answered_and_what_is_not_is_counted_with_its_rows_and_times() -> None:
    counted = Statistics()
    began = time.time_ns() // 10**6
    for _ in range(3):
        with counted.request(TWO_ROWS, ("1",)) as booking:
            counted.computed("m", "1", 0.25, 0.5)
            booking.answer(InferResponse("m", "1", "", ()))
    with pytest.raises(KeyError), counted.request(TWO_ROWS, ("1",)):
        raise KeyError
    for pairs in (4, 12, 4):
        counted.executed("m", "1", pairs, 0.125)

    counts = counted.of("m", "1")

    assert (counts.inferences, counts.success.count, counts.fail.count) == (6, 3, 1)
    assert counts.success.ns > 0
    assert counts.fail.ns > 0
    assert began <= counts.last_inference_ms <= time.time_ns() // 10**6
    assert (counts.queue, counts.compute) == (TotalTime(3, 750_000_000), TotalTime(3, 1_500_000_000))
    assert counts.batches == {4: TotalTime(2, 250_000_000), 12: TotalTime(1, 125_000_000)}


def test_who_answers_is_counted_and_what_callers_make_up_is_not() -> None:
    counted = Statistics()
    with counted.request(TWO_ROWS, ("1", "2")) as booking:
        booking.answer(InferResponse("m", "2", "", ()))  # a candidate answered
    made_up = InferRequest("m", TWO_ROWS.inputs, model_version="999")
    with pytest.raises(KeyError), counted.request(made_up, ("1", "2")):
        raise KeyError

    assert (counted.of("m", "2").success.count, counted.of("m", "1").fail.count) == (1, 1)
    assert counted.of("m", "999") == ModelCounts("m", "999")


@pytest.mark.parametrize(
    ("request_", "rows"),
    [
        (TWO_ROWS, 2),
        (InferRequest("m", (), unread=(TensorSpec("x", "FP32", (5, 4)),)), 5),
        (InferRequest("m", ()), 1),
    ],
)
def test_an_answer_of_a_model_server_is_one_execution_of_as_many_rows(
    request_: InferRequest, rows: int
) -> None:
    counted = Statistics()
    with counted.request(request_, ("7",)) as booking:
        booking.answer(InferResponse("m", "", "", (), relayed=Relayed(b"")))

    counts = counted.of("m", "7")
    assert (counts.inferences, counts.queue, counts.compute) == (rows, TotalTime(1, 0), counts.success)
    assert counts.batches == {rows: counts.success}


# On the wire


def test_counts_are_said_as_triton_says_them() -> None:
    [said] = encode_statistics([COUNTS]).model_stats

    assert (said.name, said.version, said.last_inference) == ("echo", "3", 1_700_000_000_000)
    assert (said.inference_count, said.execution_count) == (12, 3)
    times = said.inference_stats
    assert (times.success.count, times.success.ns, times.fail.count, times.fail.ns) == (4, 4000, 1, 100)
    assert (times.queue.ns, times.compute_input.ns, times.compute_infer.ns) == (700, 0, 3000)
    assert {times.compute_input.count, times.compute_infer.count, times.compute_output.count} == {4}
    batches = [(one.batch_size, one.compute_infer.count, one.compute_infer.ns) for one in said.batch_stats]
    assert batches == [(4, 2, 800), (8, 1, 500)]


# Asked of a server


async def test_rejections_and_bad_requests_count_as_failures(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path)) as client:
        [before] = await statistics(client)
        await asyncio.gather(*(client.infer(sent(CLEAN[:2])) for _ in range(3)))
        await refused(client, sent(SUSPICIOUS[:1]))
        await refused(client, sent(np.full_like(CLEAN[:1], np.nan)))
        await refused(client, sent(CLEAN[:1], model="unknown"))
        [after] = await statistics(client, "tiny", "1")
        everything = await statistics(client, "")

    assert (before.inference_count, before.last_inference, before.execution_count) == (0, 0, 0)
    assert (after.name, after.version, after.inference_count) == ("tiny", "1", 6)
    times = after.inference_stats
    assert (times.success.count, times.fail.count) == (3, 2)
    assert times.queue.count == times.compute_infer.count == 3
    assert 0 < times.queue.ns + times.compute_infer.ns <= times.success.ns
    assert after.execution_count == sum(one.compute_infer.count for one in after.batch_stats) > 0
    pairs = sum(one.batch_size * one.compute_infer.count for one in after.batch_stats)
    assert pairs > after.inference_count  # the images and their blends
    assert everything == [after]


async def test_each_version_is_counted_by_itself(tmp_path: Path) -> None:
    repository = tiny_repository(tmp_path)
    async with serving(repository) as client:
        await client.infer(sent(CLEAN[:1]))
        write_tiny_artifact(repository, boundary_bits=BOUNDARY, probed=True)
        await client.server.control.swap("tiny", "2")
        await client.infer(sent(CLEAN[:3]))
        seen = await statistics(client)
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await statistics(client, "tiny", "1")
        await client.server.control.rollback("tiny")
        [again] = await statistics(client, "tiny", "1")

    assert [(one.version, one.inference_count) for one in seen] == [("2", 3)]
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND
    assert (again.version, again.inference_count) == ("1", 1)


@pytest.mark.parametrize("name", ["nope", "tiny/../tiny"])
async def test_an_unknown_model_has_no_statistics(tmp_path: Path, name: str) -> None:
    async with serving(tiny_repository(tmp_path)) as client:
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await statistics(client, name)

    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    assert f"model {name!r} is not served here" in unknown.value.details()


async def test_a_model_servers_own_are_joined_with_what_the_guard_answered(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="theirs") as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), own={"upstream_model": "theirs"}) as client,
    ):
        upstream.statistics = True
        await client.infer(sent(CLEAN[:2]))
        await refused(client, sent(SUSPICIOUS[:1]))
        [said] = await statistics(client)

    times = said.inference_stats
    assert (said.name, said.version, said.inference_count) == ("tiny", "1", 2)
    assert (times.success.count, times.fail.count) == (1, 1)
    assert (times.queue.count, times.compute_infer.ns, said.memory_usage[0].byte_size) == (70, 7_000, 7)
    assert said.execution_count == len(upstream.calls)  # probes included, as the server counts them


async def test_a_server_that_counts_nothing_is_counted_by_the_guard(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path)) as client,
    ):
        await client.infer(sent(CLEAN[:2]))
        await client.infer(sent(CLEAN[:2]))
        await refused(client, sent(SUSPICIOUS[:1]))
        [said] = await statistics(client)

    times = said.inference_stats
    assert upstream.asked["ModelStatistics"] == 1
    assert (said.inference_count, said.execution_count, times.fail.count) == (4, 2, 1)
    assert times.compute_infer == times.success
    assert [(one.batch_size, one.compute_infer.count) for one in said.batch_stats] == [(2, 2)]


async def test_a_server_that_names_no_version_is_counted_under_that_of_the_artifact(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), version="") as upstream,
        in_front_of(upstream, tiny_repository(tmp_path)) as client,
    ):
        await client.infer(sent(CLEAN[:2]))
        [said] = await statistics(client)

    assert (said.name, said.version, said.inference_count) == ("tiny", "1", 2)


async def test_of_a_model_passed_through_the_servers_are_all_there_is(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier(), name="words", version="7") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        await client.infer(to_words())
        [ours] = await statistics(client, "words")
        upstream.statistics = True
        [theirs] = await statistics(client, "words", "7")
        everything = await statistics(client, "")

    assert (ours.name, ours.inference_count, ours.inference_stats.success.count) == ("words", 1, 1)
    assert (theirs.name, theirs.version, theirs.inference_count) == ("words", "7", 700)
    assert [(one.name, one.version) for one in everything] == [("tiny", "1"), ("words", "7")]


async def test_a_server_that_is_away_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    upstream = ModelServer(linear_classifier(), name="words")
    await upstream.start()
    async with beside(upstream, tiny_repository(tmp_path)) as client:
        await upstream.kill()
        await until_unavailable(client, "words")
        everything = await statistics(client, "")
        with pytest.raises(grpc.aio.AioRpcError) as away:
            await statistics(client, "words")

    assert [one.name for one in everything] == ["tiny"]
    assert away.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(away.value.trailing_metadata())["guard-upstream"] == "true"


# RepositoryIndex


async def index(client: Client, **fields: Any) -> list[tuple[str, str, str]]:
    answer = await client.stub.RepositoryIndex(pb.RepositoryIndexRequest(**fields))
    return [(one.name, one.version, one.state) for one in answer.models]


async def until_unavailable(client: Client, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await client.stub.RepositoryIndex(pb.RepositoryIndexRequest())
            states = {one.name: one for one in answer.models}
            if states[name].state == "UNAVAILABLE":
                break
            await asyncio.sleep(0.01)
    assert states[name].reason


async def test_the_index_lists_what_is_served_and_nothing_else_of_the_repository(tmp_path: Path) -> None:
    repository = tiny_repository(tmp_path)
    async with (
        ModelServer(linear_classifier(), name="words") as upstream,
        beside(upstream, repository) as client,
    ):
        write_tiny_artifact(repository, boundary_bits=BOUNDARY, probed=True)  # version 2, not served
        listed = await index(client)
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await index(client, repository_name="elsewhere")

    assert listed == [("tiny", "1", "READY"), ("words", "", "READY")]
    assert other.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_not_ready_says_why_and_is_left_out_where_only_ready_is_asked_for(
    tmp_path: Path,
) -> None:
    upstream = ModelServer(linear_classifier())
    await upstream.start()
    async with in_front_of(upstream, tiny_repository(tmp_path)) as client:
        assert await index(client, ready=True) == [("tiny", "1", "READY")]
        await upstream.kill()
        await until_unavailable(client, "tiny")
        assert await index(client) == [("tiny", "1", "UNAVAILABLE")]
        assert await index(client, ready=True) == []


async def test_nothing_is_loaded_or_unloaded_from_where_inference_is(tmp_path: Path) -> None:
    async with serving(tiny_repository(tmp_path)) as client:
        load = pb.RepositoryModelLoadRequest(model_name="tiny")
        load.parameters["config"].string_param = '{"backend": "python"}'
        load.parameters["file:1/model.py"].bytes_param = b"import os"
        for call in (
            client.stub.RepositoryModelLoad(load),
            client.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny")),
        ):
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "on the admin port (setting admin_port), never on this one" in await call.details()
        assert await index(client) == [("tiny", "1", "READY")]
        assert (await client.infer(sent(CLEAN[:1]))).model_version == "1"


async def test_only_extensions_that_are_there_are_named_whatever_the_server_behind_has(
    tmp_path: Path,
) -> None:
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path)) as client,
    ):
        answer = await client.stub.ServerMetadata(pb.ServerMetadataRequest())

    assert list(answer.extensions) == ["model_configuration", "classification", "statistics"]
    assert upstream.asked["ServerMetadata"] == 0
