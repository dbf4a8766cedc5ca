"""A check whose blends are predicted by the model server: the same scores, in batches that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import ModelProto

from guard.detection.superimpose import BLEND_RULES
from guard.runtime.onnx_classifier import OnnxClassifier
from guard.runtime.upstream_classifier import UpstreamClassifier
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.guard.upstream_house import (
    BOUNDARY,
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
from tests.reference_check import linear_logits
from tests.tiny_models import linear_classifier

THERE = {"upstream_check": "upstream"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(linear_classifier()) as server:
        yield server


@pytest.mark.parametrize("blend", BLEND_RULES)
@pytest.mark.parametrize(
    "model",
    [linear_classifier(), linear_classifier(softmax=True), linear_classifier(datatype="UINT8")],
    ids=["logits", "probabilities", "uint8"],
)
def test_a_pair_scores_as_in_the_check_graph(model: ModelProto, blend: str) -> None:
    kind = model.graph.output[0].name
    profile = make_profile(model, blend=blend, kind=kind)
    images, overlays = random_images(profile, 5, seed=3), random_images(profile, 8, seed=4)
    shared = {"source": profile.input, "sink": profile.output, "overlays": overlays}
    rule = profile.check.blend_rule
    graph = OnnxClassifier.open(model, fixed_batch=None, blend=rule, device="cpu", threads=1, **shared)
    elsewhere = UpstreamClassifier(graph.logits, blend=rule, **shared)
    pairs = np.array([0, 0, 1, 2, 4, 3, 3]), np.array([-1, 3, 7, 0, -1, 5, 5])

    with graph:
        logits, entropies = graph.check(images, *pairs)
        their_logits, their_entropies = elsewhere.check(images, *pairs)

    np.testing.assert_allclose(their_logits, logits, atol=1e-4)
    np.testing.assert_allclose(their_entropies, entropies, atol=1e-4)


def test_a_score_that_is_not_finite_fails_the_check_and_warns_nobody() -> None:
    profile = make_profile(linear_classifier())
    strange = np.array([[np.nan] * 10, [np.inf] * 10, [-np.inf] * 9 + [0.0]], np.float32)
    images, overlays = random_images(profile, 1), random_images(profile, 8)
    classifier = UpstreamClassifier(
        lambda images: strange,
        source=profile.input,
        sink=profile.output,
        overlays=overlays,
        blend=profile.check.blend_rule,
    )

    _, entropies = classifier.check(images, np.zeros(3, np.int64), np.arange(3))

    assert np.isnan(entropies[:2]).all()
    assert entropies[2] == 0.0


@pytest.mark.parametrize("limit", [1, 3, 5])
async def test_batches_keep_to_the_limit_that_the_server_names(repository: Path, limit: int) -> None:
    async with (
        ModelServer(linear_classifier(), max_batch_size=limit) as upstream,
        in_front_of(upstream, repository, own=THERE, policy="flag") as client,
    ):
        before = len(upstream.calls)
        answer = await client.infer(sent(SUSPICIOUS[:1]))
        checks = [call.request for call in upstream.calls[before:] if not call.request.id]

    sizes = [request.inputs[0].shape[0] for request in checks]
    assert (max(sizes), sum(sizes)) == (
        limit if limit < 5 else 4,
        9,
    )  # the image and 8 blends, in three rounds
    assert values(answer.parameters)["guard_passes"] == 8


async def test_without_a_configuration_the_limit_is_the_settings(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.config = False
    own = {**THERE, "upstream_max_batch_size": 2}
    async with in_front_of(upstream, repository, own=own) as client:
        await client.infer(sent(CLEAN))
        sizes = {call.request.inputs[0].shape[0] for call in upstream.calls if not call.request.id}

    assert sizes <= {1, 2}
    assert 2 in sizes


async def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    model = linear_classifier(batch=4)
    write_tiny_artifact(tmp_path, model=model, boundary_bits=BOUNDARY, probed=True)
    async with ModelServer(model) as upstream, in_front_of(upstream, tmp_path, own=THERE) as client:
        answer = await client.infer(sent(CLEAN[:4]))
        sizes = {call.request.inputs[0].shape[0] for call in upstream.calls if not call.request.id}

    assert values(answer.parameters)["guard_verdict"] == "accept"
    assert sizes == {4}  # three stored images, and what was left of the blends, were filled up


async def test_many_callers_share_batches_and_each_gets_its_own_verdict_and_answer(
    repository: Path, upstream: ModelServer
) -> None:
    images = np.concatenate([CLEAN, SUSPICIOUS])
    async with in_front_of(upstream, repository, own=THERE, policy="flag") as client:
        answers = await asyncio.gather(*(client.infer(sent(image[None])) for image in images))

    verdicts = [values(answer.parameters)["guard_verdict"] for answer in answers]
    assert verdicts == ["accept"] * len(CLEAN) + ["flag"] * len(SUSPICIOUS)
    logits = np.stack([np.frombuffer(answer.raw_output_contents[0], "<f4") for answer in answers])
    np.testing.assert_allclose(logits, linear_logits(images), atol=1e-4)


async def test_a_check_that_the_server_refuses_refuses_the_request(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository, own=THERE) as client:
        upstream.max_batch_size = 1  # it changed its mind and told nobody
        error = await refused(client, sent(CLEAN[:1]))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details().startswith("model 'tiny' failed on this input (UpstreamStatusError)")
    assert client.counted("guard_uncheckable_inputs_total", "reason", "outcome") == {
        ("check_failed", "refused"): 1
    }


async def test_a_check_that_fails_lets_the_answer_out_where_the_operator_chose_so(
    repository: Path, upstream: ModelServer
) -> None:
    async with in_front_of(upstream, repository, own=THERE, on_uncheckable="answer") as client:
        upstream.refuses_checks = (grpc.StatusCode.INVALID_ARGUMENT, "not this one", ())
        answer = await client.infer(sent(np.concatenate([CLEAN[:1], CLEAN[:1] + 5])))

    assert values(answer.parameters) == {"theirs": 7, "guard_verdict": "unchecked", "guard_passes": 0}
    assert client.counted("guard_uncheckable_inputs_total", "reason", "outcome") == {
        ("check_failed", "answered"): 1,
        ("out_of_range", "answered"): 1,
    }


async def test_a_server_that_is_busy_has_the_caller_retry(repository: Path, upstream: ModelServer) -> None:
    async with in_front_of(upstream, repository, own=THERE) as client:
        upstream.refuses_checks = (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", ())
        error = await refused(client, sent(CLEAN[:1]))
        upstream.refuses_checks = None
        await client.infer(sent(CLEAN[:1]))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details().endswith("takes no check just now: the queue is full; retry")
    assert trailing(error) == {"guard-upstream": "true"}


async def test_a_server_that_dies_in_a_check_is_named(repository: Path, upstream: ModelServer) -> None:
    async with in_front_of(upstream, repository, own=THERE, upstream_wait_s=0.1) as client:
        upstream.dies = True
        error = await refused(client, sent(SUSPICIOUS[:1]))
        await upstream.start()

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(error) == {"guard-upstream": "true"}
