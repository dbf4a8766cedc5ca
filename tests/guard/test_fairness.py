"""Clients take turns through a whole guard, whoever a client is said to be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fake_classifier import GatedClassifier

from guard.rpc.client_name import client_of
from guard.runtime.scheduler import CheckedClassifier
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, tiny_repository, values
from tests.serving import Client, hold_devices, infer_request, serving

FLOOD = 100
PAIRS_A_CALL = 64


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GatedClassifier]]:
    devices: list[GatedClassifier] = []

    def hold(classifier: CheckedClassifier) -> GatedClassifier:
        devices.append(GatedClassifier(classifier))
        return devices[-1]

    hold_devices(monkeypatch, hold)
    yield devices
    for device in devices:
        device.let_all_go()


async def outcome(client: Client, images: np.ndarray, name: str) -> str:
    """Send a request as some client; return its verdict, or the status that it was refused with."""
    try:
        answer = await client.infer(infer_request(images), metadata=(("x-guard-client", name),))
        return str(values(answer.parameters)["guard_verdict"])
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def rows_waiting(client: Client, rows: int) -> None:
    slot = client.server._keeper.models["tiny"].slot
    assert slot.current is not None
    while slot.current.scheduler.rows < rows:  # noqa: ASYNC110 - it is a thread's, which tells nobody
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(("names", "waits"), [(("flood", "bystander"), False), (("one", "one"), True)])
async def test_a_flood_of_triggered_requests_delays_a_clean_one_of_another_client_by_a_turn_each(
    tmp_path: Path, held: list[GatedClassifier], names: tuple[str, str], waits: bool
) -> None:
    """The device calls until the bystander is answered are counted, with every call held by the test."""
    async with serving(tiny_repository(tmp_path), client_header="x-guard-client") as client:
        [device] = held
        flood = [asyncio.create_task(outcome(client, SUSPICIOUS[:1], names[0])) for _ in range(FLOOD)]
        await rows_waiting(client, FLOOD)
        await device.next_call()
        bystander = asyncio.create_task(outcome(client, CLEAN[:1], names[1]))
        await rows_waiting(client, FLOOD + 1)
        mine, calls, first = float(CLEAN[0, 0, 0, 0]), 0, 0
        device.let_one_go()
        while not first:
            calls += 1
            pairs = await device.next_call()
            first = calls if any(pixel == mine for pixel, _ in pairs) else 0
            device.let_one_go()
        device.let_all_go()

        assert (first > 1) is waits  # in the very next call, or after those who came before
        assert (await bystander, set(await asyncio.gather(*flood))) == ("accept", {"PERMISSION_DENIED"})


async def test_a_client_that_waits_for_too_much_is_told_so_and_the_other_is_served(
    tmp_path: Path, held: list[GatedClassifier]
) -> None:
    settings = {"client_header": "x-guard-client", "max_client_rows": 64}
    async with serving(tiny_repository(tmp_path), **settings) as client:
        rows = CLEAN[:1].repeat(32, axis=0)
        flood = [asyncio.create_task(outcome(client, rows, "flood")) for _ in range(2)]
        await rows_waiting(client, 64)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.infer(infer_request(CLEAN[:1]), metadata=(("x-guard-client", "flood"),))
        other = asyncio.create_task(outcome(client, CLEAN[:1], "other"))
        await rows_waiting(client, 65)
        held[0].let_all_go()

        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "expected at most 64 (max_client_rows)" in error.value.details()
        assert {await other, *await asyncio.gather(*flood)} == {"accept"}
        assert client.counted("guard_shed_requests_total", "reason") == {("queue_full",): 1}


class Called:
    """A call's context."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def peer(self) -> str:
        return "ipv4:10.0.0.7:52817"

    def invocation_metadata(self) -> Any:
        return self._metadata

    async def abort(self, *_: object) -> Any: ...

    def time_remaining(self) -> float | None: ...

    async def send_initial_metadata(self, initial_metadata: object) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: object) -> None: ...


LONG = "spiffe://" + "a" * 200


@pytest.mark.parametrize(
    ("metadata", "header", "name"),
    [
        ((("x-client", "shop"),), "x-client", "shop"),
        ((("x-client", "shop"),), None, "ipv4:10.0.0.7"),  # anybody could say so
        ((("other", "shop"),), "x-client", "ipv4:10.0.0.7"),
        ((("x-client", ""),), "x-client", "ipv4:10.0.0.7"),
        (
            (("x-client", "said by the caller"), ("x-client", "added by the proxy")),
            "x-client",
            "added by the proxy",
        ),
    ],
)
def test_a_client_is_its_address_or_what_the_proxy_says(
    metadata: tuple[tuple[str, str], ...], header: str | None, name: str
) -> None:
    assert client_of(Called(*metadata), header) == name


def test_a_name_is_bounded_and_long_ones_that_differ_at_their_end_are_two() -> None:
    names = {client_of(Called(("x-client", LONG + end)), "x-client") for end in ("1", "2")}

    assert len(names) == 2
    assert all(len(name) <= 128 for name in names)
