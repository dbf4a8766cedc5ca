"""Mixed requests, and a model server that is killed among them: none is lost, none goes unchecked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import pytest

from tests.guard.upstream_house import CLEAN, SUSPICIOUS, in_front_of, sent, tiny_repository, values
from tests.model_server import ModelServer
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S, Client
from tests.tiny_models import linear_classifier

MODES = pytest.mark.parametrize("check", ["local", "upstream"])
KINDS: Final = ("clean", "clean", "clean", "triggered", "bad", "cancelled", "oversized")
AWAY: Final = "UNAVAILABLE"
MAY_END_AS: Final = {
    "clean": {"OK", AWAY},
    "triggered": {"PERMISSION_DENIED", AWAY},
    "bad": {"INVALID_ARGUMENT"},
    "cancelled": {"CANCELLED", "OK", AWAY},
    "oversized": {"RESOURCE_EXHAUSTED"},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(linear_classifier()) as server:
        yield server


@MODES
async def test_five_hundred_requests_and_a_server_that_dies_twice_among_them(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    settings = {"max_message_bytes": 20_000, "own": {"upstream_check": check}}
    async with in_front_of(upstream, repository, max_concurrent_requests=1000, **settings) as client:
        outcomes = await storm(client, upstream, 500, deaths={100, 300})
        await answers_again(client)

    expect_none_lost_and_none_unchecked(outcomes, 500)


@pytest.mark.slow
@MODES
async def test_ten_thousand_requests_and_a_server_that_dies_among_them_take_no_memory(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    settings = {"max_message_bytes": 20_000, "own": {"upstream_check": check}}
    async with in_front_of(upstream, repository, max_concurrent_requests=1000, **settings) as client:
        await storm(client, upstream, 2_000, deaths={500, 1500})
        before = resident_mib()
        outcomes = await storm(client, upstream, 10_000, deaths=set(range(500, 10_000, 1000)))
        after = resident_mib()
        await answers_again(client)

    expect_none_lost_and_none_unchecked(outcomes, 10_000)
    assert after - before < 32


def expect_none_lost_and_none_unchecked(outcomes: list[tuple[str, str]], sent_in_all: int) -> None:
    counts = Counter(outcomes)
    assert len(outcomes) == sent_in_all
    for kind, allowed in MAY_END_AS.items():
        assert {outcome for of, outcome in counts if of == kind} <= allowed, kind
    assert counts["clean", "OK"] > 0
    assert counts["triggered", "PERMISSION_DENIED"] > 0


async def storm(client: Client, upstream: ModelServer, count: int, deaths: set[int]) -> list[tuple[str, str]]:
    """Send requests of all kinds from 16 callers; return the kind and the status of each."""
    draw = random.Random(7)
    queue = iter([(number, draw.choice(KINDS)) for number in range(count)])
    outcomes: list[tuple[str, str]] = []

    async def call_on() -> None:
        for number, kind in queue:
            outcomes.append((kind, await one(client, kind, number)))
            if len(outcomes) in deaths:
                await upstream.kill()
                upstream.calls.clear()
                await upstream.start()

    await asyncio.gather(*(call_on() for _ in range(16)))
    return outcomes


async def one(client: Client, kind: str, number: int) -> str:
    """Send a request; return its status, and see that an answer is the right one, checked."""
    image = (SUSPICIOUS if kind == "triggered" else CLEAN)[number % 2][None]
    request = sent(np.repeat(image, 40, axis=0) if kind == "oversized" else image, id=str(number + 1))
    if kind == "bad":
        request.inputs[0].name = "picture"
    call = client.stub.ModelInfer(request, timeout=PATIENCE_S)
    if kind == "cancelled":
        await asyncio.sleep(0)
        call.cancel()
        return str((await call.code()).name)
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    assert (answer.id, values(answer.parameters)["guard_verdict"]) == (str(number + 1), "accept")
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(1, 10)
    np.testing.assert_allclose(logits, linear_logits(image), atol=1e-4)
    return "OK"


async def answers_again(client: Client) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await one(client, "clean", 0) != "OK":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


def resident_mib() -> float:
    """Return the memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
