"""Calls to a model server that nobody waits for any more: whatever comes of them late changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.guard.swap_house import NEW, OLD, serving_the_first, swapped, two_versions, until, whose
from tests.guard.test_pass_through import beside, to_words
from tests.guard.test_upstream_readiness import becomes, readiness
from tests.guard.upstream_house import hung_up_on, sent, tiny_repository
from tests.model_server import Call, ModelServer
from tests.serving import PATIENCE_S, Client

BUSY = (grpc.StatusCode.UNAVAILABLE, "busy", ())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_versions(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(OLD) as server:
        server.brings = exchanged
        server.checks_pass = True
        yield server


def exchanged(there: ModelServer) -> None:
    there.load(NEW)
    there.version = "2"


async def left(client: Client, upstream: ModelServer) -> Call:
    """Return a call that its caller left, and that the server holds."""
    call = await hung_up_on(client, upstream, sent())
    await until(lambda: client.counted("guard_shed_requests_total", "reason").get(("cancelled",)))
    return call


@pytest.mark.parametrize("late", ["an answer", "a refusal", "no answer at all"])
async def test_a_model_is_exchanged_in_place_while_one_is_under_way(
    repository: Path, upstream: ModelServer, late: str
) -> None:
    async with serving_the_first(upstream, repository, own={"upstream_load": "swap"}) as client:
        call = await left(client, upstream)
        why = await swapped(client)
        still = call.ended.is_set()
        upstream.refusal = BUSY if late == "a refusal" else None
        upstream.raw = b"\xff" if late == "no answer at all" else None
        upstream.open.set()
        await asyncio.wait_for(call.ended.wait(), PATIENCE_S)
        await until(lambda: client.counted("guard_upstream_calls_total", purpose="predict"))
        upstream.refusal = upstream.raw = None
        looked = upstream.asked["ModelReady"]
        ready = await readiness(client)
        answer = whose(await client.infer(sent()))
        await until(lambda: upstream.asked["ModelReady"] > looked)
        await becomes(client, True)

    assert (why, still, call.cancelled) == ("", False, False)
    assert (ready, answer) == ({True}, ("2", "2"))
    assert client.counted("guard_upstream_retries_total") == {}


async def test_one_to_a_model_that_is_passed_through_goes_on_too(tmp_path: Path) -> None:
    async with (
        ModelServer(OLD, name="words") as upstream,
        beside(upstream, tiny_repository(tmp_path)) as client,
    ):
        call = await hung_up_on(client, upstream, to_words())
        await until(lambda: client.infers_counted() == {("words", "CANCELLED"): 1})
        still = call.ended.is_set()
        upstream.open.set()
        await asyncio.wait_for(call.ended.wait(), PATIENCE_S)
        assert (await client.infer(to_words())).model_name == "words"

    assert (still, call.cancelled) == (False, False)


async def test_a_guard_stops_though_one_does_not_end(repository: Path, upstream: ModelServer) -> None:
    async with serving_the_first(upstream, repository, own={}) as client:
        call = await left(client, upstream)
        async with asyncio.timeout(PATIENCE_S):
            await client.server.stop()

    await asyncio.wait_for(call.ended.wait(), PATIENCE_S)
    assert call.cancelled
