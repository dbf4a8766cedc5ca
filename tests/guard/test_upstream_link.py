"""The connection to a model server, call by call."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from prometheus_client import CollectorRegistry

from guard.errors import UpstreamStatusError
from guard.metrics_labels import UpstreamPurpose
from guard.upstream.counts import UpstreamCounts
from guard.upstream.link import Address, Link
from tests.guard.upstream_house import sent
from tests.model_server import Call, ModelServer
from tests.serving import PATIENCE_S
from tests.tiny_models import linear_classifier

CALLS = 50


def futures_alive() -> int:
    gc.collect()
    return sum(type(one) is asyncio.Future for one in gc.get_objects())


@asynccontextmanager
async def linked(upstream: ModelServer) -> AsyncIterator[Link]:
    counts = UpstreamCounts(CollectorRegistry())
    link = Link(Address("tiny", upstream.address, "tiny"), counts, max_message_bytes=1_000_000)
    await link.connect()
    yield link
    await link.close()


async def infer(link: Link) -> None:
    await link.infer(sent().SerializeToString(), PATIENCE_S, purpose=UpstreamPurpose.PREDICT)


async def hung_up(link: Link, upstream: ModelServer, count: int) -> list[Call]:
    """Make calls that the server holds, and wait for none of them."""
    upstream.open.clear()
    waiting = [asyncio.ensure_future(infer(link)) for _ in range(count)]
    await upstream.arrival(count)
    for one in waiting:
        one.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    return list(upstream.predictions)


async def test_a_server_that_says_it_is_busy_leaves_nothing_behind_however_often() -> None:
    async with ModelServer(linear_classifier()) as upstream:
        upstream.refusal = (grpc.StatusCode.UNAVAILABLE, "busy", ())

        async def busy(link: Link) -> None:
            with pytest.raises(UpstreamStatusError, match="busy"):
                await infer(link)

        async with linked(upstream) as link:
            await busy(link)
            before = futures_alive()
            await asyncio.gather(*(busy(link) for _ in range(CALLS)))
            after = futures_alive()

    assert after - before < CALLS / 2


async def test_a_call_that_nobody_waits_for_ends_by_itself_and_leaves_nothing_behind() -> None:
    async with ModelServer(linear_classifier()) as upstream, linked(upstream) as link:
        before = futures_alive()
        calls = await hung_up(link, upstream, CALLS)
        upstream.open.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(call.ended.wait() for call in calls))
            while futures_alive() - before >= CALLS / 2:  # noqa: ASYNC110 - answers are still on their way
                await asyncio.sleep(0.01)

    assert not any(call.cancelled for call in calls)


async def test_a_call_that_nobody_waits_for_may_fail_unseen(caplog: pytest.LogCaptureFixture) -> None:
    async with ModelServer(linear_classifier()) as upstream, linked(upstream) as link:
        [call] = await hung_up(link, upstream, 1)
        await upstream.kill()
        await asyncio.wait_for(call.ended.wait(), PATIENCE_S)
    gc.collect()

    assert not caplog.records


@pytest.mark.parametrize(
    ("bound", "most"), [("_MOST_LEFT", 3), ("_MOST_LEFT_BYTES", 3 * len(sent().SerializeToString()))]
)
async def test_of_too_much_that_nobody_waits_for_the_last_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(f"guard.upstream.link.{bound}", most)
    async with ModelServer(linear_classifier()) as upstream, linked(upstream) as link:
        calls = await hung_up(link, upstream, 5)
        async with asyncio.timeout(PATIENCE_S):
            while sum(call.ended.is_set() for call in calls) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        upstream.open.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(call.ended.wait() for call in calls))

    assert sum(call.cancelled for call in calls) == 2


async def test_what_ended_counts_no_more_among_what_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.upstream.link._MOST_LEFT", 1)
    async with ModelServer(linear_classifier()) as upstream, linked(upstream) as link:
        for count in (1, 2, 3):
            upstream.open.clear()
            waiting = asyncio.ensure_future(infer(link))
            call = await upstream.arrival(count)
            waiting.cancel()
            await asyncio.wait([waiting])
            upstream.open.set()
            async with asyncio.timeout(PATIENCE_S):
                await call.ended.wait()
                while link._left:  # noqa: ASYNC110 - the answer is still on its way
                    await asyncio.sleep(0.01)

    assert [call.cancelled for call in upstream.predictions] == [False] * 3


async def test_a_connection_that_closes_waits_for_a_call_that_nobody_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guard.upstream.link._LEAVE_S", PATIENCE_S)
    async with ModelServer(linear_classifier()) as upstream, linked(upstream) as link:
        [call] = await hung_up(link, upstream, 1)
        closing = asyncio.ensure_future(link.close())
        await asyncio.sleep(0.1)  # long enough to break the call off, were it not waited for
        upstream.open.set()
        await asyncio.wait_for(closing, PATIENCE_S)
        await asyncio.wait_for(call.ended.wait(), PATIENCE_S)

    assert not call.cancelled


async def test_a_connection_closes_though_a_call_that_nobody_waits_for_does_not_end() -> None:
    async with ModelServer(linear_classifier()) as upstream:
        async with asyncio.timeout(PATIENCE_S), linked(upstream) as link:
            [call] = await hung_up(link, upstream, 1)
        async with asyncio.timeout(PATIENCE_S):
            await call.ended.wait()

    assert call.cancelled
