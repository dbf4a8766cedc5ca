"""The connection to a model server, call by call."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest
from prometheus_client import CollectorRegistry

from guard.errors import UpstreamStatusError
from guard.metrics_labels import UpstreamPurpose
from guard.upstream.counts import UpstreamCounts
from guard.upstream.link import Address, Link
from tests.guard.upstream_house import sent
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S
from tests.tiny_models import linear_classifier

CALLS = 50


def futures_alive() -> int:
    gc.collect()
    return sum(type(one) is asyncio.Future for one in gc.get_objects())


async def test_a_server_that_says_it_is_busy_leaves_nothing_behind_however_often() -> None:
    async with ModelServer(linear_classifier()) as upstream:
        upstream.refusal = (grpc.StatusCode.UNAVAILABLE, "busy", ())
        link = Link(
            Address("tiny", upstream.address, "tiny"),
            UpstreamCounts(CollectorRegistry()),
            max_message_bytes=1_000_000,
        )
        await link.connect()
        message = sent().SerializeToString()

        async def busy() -> None:
            with pytest.raises(UpstreamStatusError, match="busy"):
                await link.infer(message, PATIENCE_S, purpose=UpstreamPurpose.PREDICT)

        await busy()
        before = futures_alive()
        await asyncio.gather(*(busy() for _ in range(CALLS)))
        after = futures_alive()
        await link.close()

    assert after - before < CALLS / 2
