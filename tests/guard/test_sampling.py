"""A share of the requests is checked, under ``monitor``; the others go the cheapest way, and are counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.messages import Reading
from guard.rpc.pb import open_inference_pb2 as pb
from tests.guard.upstream_house import (
    CLEAN,
    SUSPICIOUS,
    in_front_of,
    refused,
    sent,
    tiny_repository,
    trailing,
    values,
)
from tests.model_server import ModelServer
from tests.serving import Client, infer_request, serving
from tests.tiny_models import linear_classifier

Change = Callable[[pb.ModelInferRequest], object]
NOT_SAMPLED = ("not_sampled", "answered")


def not_sampled(client: Client) -> float:
    counted = client.counted("guard_uncheckable_inputs_total", "reason", "outcome")
    assert set(counted) <= {NOT_SAMPLED}
    return counted.get(NOT_SAMPLED, 0.0)


async def verdicts(client: Client, requests: list[pb.ModelInferRequest]) -> Counter[str]:
    answers = [await client.infer(request) for request in requests]
    return Counter(values(answer.parameters)["guard_verdict"] for answer in answers)


async def test_a_share_of_the_requests_is_checked_and_the_rest_only_answered(tmp_path: Path) -> None:
    requests = [infer_request(SUSPICIOUS[:2])] * 40
    async with serving(tiny_repository(tmp_path), policy="monitor", sampling=0.25) as client:
        counted = await verdicts(client, requests)

    assert counted == {"pending": 10, "unchecked": 30}
    assert not_sampled(client) == 60  # rows, once all is done
    assert client.counted("guard_inputs_total", "verdict") == {("flag",): 20, ("unchecked",): 60}
    assert client.counted("guard_check_passes_count") == {(): 20}


async def test_what_is_not_drawn_is_answered_by_the_model_alone_and_no_witness_hears_of_it(
    tmp_path: Path,
) -> None:
    repository, log = tiny_repository(tmp_path), tmp_path / "audit.jsonl"
    async with serving(repository, policy="monitor") as client:
        full = await client.infer(infer_request(SUSPICIOUS[:2]))
    own = {"tiny": {"policy": "monitor", "sampling": 0.0}}
    async with serving(repository, models=own, audit_log=log) as client:
        bare = await client.infer(infer_request(SUSPICIOUS[:2]))
        wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("guard_verdict",)]
        named = await client.infer(infer_request(SUSPICIOUS[:2], outputs=wanted))

    assert bare.raw_output_contents == full.raw_output_contents
    assert values(bare.parameters) == {"guard_verdict": "unchecked", "guard_passes": 0}
    assert named.raw_output_contents[0].count(b"unchecked") == 2
    assert client.counted("guard_device_batch_pairs_sum") == {(): 4}  # the images, no blend
    assert client.counted("guard_check_passes_count") == {}
    kinds = {json.loads(line)["kind"] for line in log.read_text().splitlines()}
    assert kinds == {"loaded", "server_started", "server_stopped"}


async def test_a_request_that_is_not_drawn_goes_to_the_model_server_as_it_came(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), policy="monitor", sampling=0.0) as client,
    ):
        request = sent(SUSPICIOUS[:2])
        answer = await client.infer(request)

        assert upstream.predictions[0].message == request.SerializeToString()
        assert values(answer.parameters) == {"theirs": 7, "guard_verdict": "unchecked", "guard_passes": 0}
        assert not_sampled(client) == 2
        assert client.counted("guard_check_passes_count") == {}


async def test_nobody_looks_into_the_tensors_of_what_is_not_drawn(tmp_path: Path) -> None:
    broken, outside = sent(CLEAN[:1]), sent(np.full_like(CLEAN[:1], np.nan))
    broken.raw_input_contents[0] = b"abc"
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), policy="monitor", sampling=0.0) as client,
    ):
        error = await refused(client, broken)
        await client.infer(outside)

        assert trailing(error)["guard-upstream"] == "true"  # it is for the server to say
        assert [call.message for call in upstream.predictions] == [
            broken.SerializeToString(),
            outside.SerializeToString(),
        ]
        assert not_sampled(client) == 1


async def test_in_front_of_a_model_server_the_share_is_checked(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(
            upstream, tiny_repository(tmp_path), own={"policy": "monitor", "sampling": 0.5}
        ) as client,
    ):
        counted = await verdicts(client, [sent(SUSPICIOUS[:1])] * 8)

    assert counted == {"pending": 4, "unchecked": 4}
    assert len(upstream.predictions) == 8
    assert client.counted("guard_inputs_total", "verdict") == {("flag",): 4, ("unchecked",): 4}


def under_another_name(request: pb.ModelInferRequest) -> None:
    request.inputs[0].name = "picture"


def beside_another(request: pb.ModelInferRequest) -> None:
    request.inputs.add(name="unseen", datatype="FP32", shape=[1])
    request.raw_input_contents.append(b"\0\0\0\0")


def in_shared_memory(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "theirs"


def of_too_many_rows(request: pb.ModelInferRequest) -> None:
    request.inputs[0].shape[0] = 1_000_000_000


def of_no_rows(request: pb.ModelInferRequest) -> None:
    del request.inputs[0].shape[:]


def of_another_version(request: pb.ModelInferRequest) -> None:
    request.model_version = "2"


def with_a_verdict(request: pb.ModelInferRequest) -> None:
    request.parameters["guard_verdict"].string_param = "accept"


def with_an_unknown_field(request: pb.ModelInferRequest) -> None:
    request.MergeFromString(b"\x9a\x01\x05above")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (under_another_name, "INVALID_ARGUMENT"),
        (beside_another, "INVALID_ARGUMENT"),
        (in_shared_memory, "INVALID_ARGUMENT"),
        (of_too_many_rows, "INVALID_ARGUMENT"),
        (of_no_rows, "INVALID_ARGUMENT"),
        (of_another_version, "NOT_FOUND"),
        (with_a_verdict, "INVALID_ARGUMENT"),
        (with_an_unknown_field, "INVALID_ARGUMENT"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_refusal_does_not_depend_on_whether_a_request_was_drawn(
    tmp_path: Path, change: Change, code: str
) -> None:
    request = sent(CLEAN[:1])
    change(request)
    told: list[Any] = []
    async with ModelServer(linear_classifier()) as upstream:
        for sampling in (0.0, 1.0):
            async with in_front_of(
                upstream, tiny_repository(tmp_path), policy="monitor", sampling=sampling
            ) as client:
                error = await refused(client, request)
                told.append((error.code().name, trailing(error)))

    assert told == [(code, {})] * 2
    assert upstream.predictions == []


async def test_what_could_be_refused_is_always_read(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier()) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), policy="enforce") as client,
    ):
        plane = client.server._dataplane
        assert plane is not None
        assert {plane.reads("tiny") for _ in range(20)} == {Reading.TENSORS}


async def test_findings_are_not_classified_for_anyone_drawn_or_not(tmp_path: Path) -> None:
    request = sent(SUSPICIOUS[:1])
    request.outputs.add(name="guard_score").parameters["classification"].int64_param = 1
    async with ModelServer(linear_classifier()) as upstream:
        for share in (0.0, 1.0):
            async with in_front_of(
                upstream, tiny_repository(tmp_path / f"{share}"), policy="monitor", sampling=share
            ) as client:
                error = await refused(client, request)

            assert "output 'guard_score' holds no class scores" in error.details()

    assert upstream.predictions == []
