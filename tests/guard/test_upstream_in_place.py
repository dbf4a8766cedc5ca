"""A model server with one version at a time: its model is exchanged while requests are held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.guard.swap_house import (
    ACCEPTS_ALL,
    FLAGS_ALL,
    NEW,
    OLD,
    Crowd,
    serves,
    serving_the_first,
    swapped,
    two_versions,
    until,
    whose,
)
from tests.guard.test_upstream_readiness import becomes, readiness
from tests.guard.upstream_house import be_patient, hear_of_breaks, refused, sent, values
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client
from tests.tiny_models import linear_classifier

LOADS: dict[str, object] = {"upstream_load": "swap"}
SHORT = {"upstream_wait_s": 0.05}
MODES = pytest.mark.parametrize("check", ["local", "upstream"])
POLICIES = pytest.mark.parametrize("policy", ["flag", "monitor"])
NAMED = pytest.mark.parametrize("named", ["another version", "the same version", "no version"])


def exchanged(there: ModelServer) -> None:
    there.load(NEW)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_versions(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(OLD) as server:
        server.brings = exchanged
        yield server


@MODES
@NAMED
async def test_a_swap_exchanges_the_model_and_no_client_loses_a_request(
    repository: Path, upstream: ModelServer, check: str, named: str
) -> None:
    def as_the_server_names_it(there: ModelServer) -> None:
        there.load(NEW)
        if named == "another version":
            there.version = "2"

    upstream.brings = as_the_server_names_it
    upstream.version = "" if named == "no version" else "1"
    own = LOADS | {"upstream_check": check}
    async with serving_the_first(upstream, repository, own=own) as client, Crowd(client) as crowd:
        report = await client.server.control.swap("tiny", "2")
        await crowd.more()
        after = whose(await client.infer(sent()))

    assert crowd.errors == []
    assert crowd.seen == {("1", "1"), ("2", "2")}
    assert after == ("2", "2")
    where = f"model server {upstream.address} (model 'tiny')"
    assert [step.words for step in report.steps] == [
        f"requests are held, and those under way at {where} finish",
        f"{where} loads version '2'",
        "its answers are compared with those at calibration",
    ]


async def test_those_under_way_finish_before_the_model_is_exchanged_and_those_that_come_wait(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own=LOADS) as client:
        upstream.checks_pass = True
        upstream.open.clear()
        under_way = asyncio.create_task(client.infer(sent()))
        await upstream.arrival()
        swap = asyncio.create_task(swapped(client))
        await until_doing(client, "requests are held")
        held = asyncio.create_task(client.infer(sent()))
        await held_here(client, 2)
        loads_meanwhile = upstream.asked["RepositoryModelLoad"]
        upstream.open.set()

        assert await swap == ""
        assert [whose(await under_way), whose(await held)] == [("1", "1"), ("2", "2")]
    assert loads_meanwhile == 0
    assert len(upstream.predictions) == 2


async def until_doing(client: Client, words: str) -> None:
    """Wait until the operation on the model does something."""
    async with asyncio.timeout(PATIENCE_S):
        while words not in (await client.server.control.status("tiny"))[0].doing:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def held_here(client: Client, leases: int) -> None:
    """Wait until so many requests have leased the model."""
    slot = client.server._keeper.models["tiny"].slot
    await until(lambda: sum(slot._leases.values()) == leases)


async def test_a_check_that_goes_on_after_the_answer_is_finished_by_the_model_that_it_began_with(
    repository: Path, upstream: ModelServer
) -> None:
    own = LOADS | {"upstream_check": "upstream"}
    async with serving_the_first(upstream, repository, own=own, policy="monitor") as client:
        upstream.checks_open.clear()
        await client.infer(sent())
        swap = asyncio.create_task(swapped(client))
        await until_doing(client, "requests are held")
        loads_meanwhile = upstream.asked["RepositoryModelLoad"]
        upstream.checks_open.set()
        assert await swap == ""
        counted = client.counted("guard_inputs_total", "verdict")

    assert counted == {("accept",): 2}  # by version 1's boundary and network, which accept all
    assert loads_meanwhile == 0


@POLICIES
async def test_a_load_that_fails_lets_the_held_requests_go_to_the_model_that_is_still_there(
    repository: Path, upstream: ModelServer, policy: str
) -> None:
    upstream.load_refusal = (grpc.StatusCode.INVALID_ARGUMENT, "no such file")
    async with (
        serving_the_first(upstream, repository, own=LOADS, policy=policy) as client,
        Crowd(client) as crowd,
    ):
        why = await swapped(client)
        await crowd.more()
        assert await readiness(client) == {True}

    assert crowd.errors == []
    assert {answer.model_version for answer in crowd.answers} == {"1"}
    assert "says INVALID_ARGUMENT: no such file; see to its files there" in why
    assert why.endswith("version '1' serves on")


async def test_a_load_that_brings_no_other_model_lets_the_old_one_serve_on(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.brings = lambda there: None
    async with serving_the_first(upstream, repository, own=LOADS) as client, Crowd(client) as crowd:
        why = await swapped(client)
        await crowd.more()

    assert crowd.errors == []
    assert crowd.seen == {("1", "1")}
    assert "answers the stored image 0 with logits up to" in why
    assert why.endswith("version '1' serves on")


@MODES
async def test_a_model_that_is_neither_version_gets_no_request_until_one_of_them_is_there(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    upstream.brings = lambda there: there.load(linear_classifier(seed=9))
    own = LOADS | {"upstream_check": check}
    async with serving_the_first(upstream, repository, own=own, **SHORT) as client:
        why = await swapped(client)
        asked = len(upstream.predictions)
        error = await refused(client, sent())
        assert await readiness(client) == {False}
        assert len(upstream.predictions) == asked
        upstream.load(OLD)
        await becomes(client, True)
        be_patient(client)
        old = whose(await client.infer(sent()))
        upstream.brings = exchanged
        assert await swapped(client) == ""
        new = whose(await client.infer(sent()))

    assert "the model server is not ready for version '1' either" in why
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert (old, new) == (("1", "1"), ("2", "2"))


async def test_a_swap_brings_a_server_back_that_has_neither_version(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.load(linear_classifier(seed=9))
    async with serving_the_first(upstream, repository, own=LOADS, **SHORT) as client:
        assert await readiness(client) == {False}
        assert await swapped(client) == ""
        await becomes(client, True)
        be_patient(client)
        assert whose(await client.infer(sent())) == ("2", "2")


async def test_a_swap_to_the_version_that_checks_has_it_loaded_again_where_it_is_not(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.brings = lambda there: there.load(linear_classifier(seed=9))
    async with serving_the_first(upstream, repository, own=LOADS, **SHORT) as client:
        await swapped(client)
        still = await swapped(client, "1")
        upstream.brings = lambda there: there.load(OLD)  # its files were put back
        report = await client.server.control.swap("tiny", "1")
        be_patient(client)
        answer = whose(await client.infer(sent()))
        again = await client.server.control.swap("tiny", "1")

    assert "answers the stored image 0 with logits up to" in still
    assert (report.changed, len(report.steps), answer) == (False, 3, ("1", "1"))
    assert (again.changed, again.steps) == (False, ())


async def test_a_version_that_failed_is_not_tried_by_a_watcher_again_and_again(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.load_refusal = (grpc.StatusCode.INTERNAL, "no")
    async with serving_the_first(upstream, repository, own=LOADS) as client:
        keeper = client.server._keeper.keeper_of("tiny")
        keeper.record = keeper.record.model_copy(update={"newest": 1})
        assert await asyncio.to_thread(keeper.newer) == "2"
        await swapped(client)
        assert await asyncio.to_thread(keeper.newer) is None


async def test_a_load_given_up_that_ends_during_another_one_lets_nothing_through(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.loads_open.clear()
    async with serving_the_first(upstream, repository, own=LOADS, upstream_load_s=0.2) as client:
        member = client.server._fleet._members["tiny"]
        await swapped(client)
        member.takeover.loader._limit_s = PATIENCE_S
        first, upstream.loads_open = upstream.loads_open, asyncio.Event()
        upstream.brings = lambda there: None
        second = asyncio.create_task(swapped(client))
        await until_doing(client, "loads version '2'")
        first.set()
        await until(lambda: upstream.asked["RepositoryModelLoad"] == 2)
        await member.follower.look()
        ready = (await client.stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
        upstream.brings = exchanged
        upstream.loads_open.set()

        assert await second == ""
        assert whose(await client.infer(sent())) == ("2", "2")
    assert not ready


async def test_while_nobody_knows_what_becomes_of_a_load_no_request_goes_there(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.loads_open.clear()
    async with serving_the_first(upstream, repository, own=LOADS, upstream_load_s=0.2, **SHORT) as client:
        why = await swapped(client)
        error = await refused(client, sent())
        asked = list(upstream.predictions)
        upstream.load_refusal = (grpc.StatusCode.INTERNAL, "gave up")
        upstream.loads_open.set()
        await becomes(client, True)
        be_patient(client)
        answer = whose(await client.infer(sent()))

    assert "did not load version '2' within 0.200 s, and may yet" in why
    assert "is not known whether it still loads version '2'" in error.details()
    assert (asked, answer) == ([], ("1", "1"))


async def test_a_server_that_dies_while_it_loads_is_looked_at_when_it_is_back(
    repository: Path, upstream: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear_of_breaks(monkeypatch)
    upstream.loads_open.clear()
    async with serving_the_first(upstream, repository, own=LOADS, **SHORT) as client:
        swap = asyncio.create_task(swapped(client))
        await until(lambda: upstream.asked["RepositoryModelLoad"])
        await upstream.kill()
        why = await swap
        upstream.load(NEW)
        await upstream.start()
        error = await refused(client, sent())
        upstream.loads_open.set()
        async with asyncio.timeout(PATIENCE_S):
            while await swapped(client):  # until there is a connection again
                pass
        be_patient(client)
        answer = whose(await client.infer(sent()))

    assert "cannot be reached, or broke off" in why, why
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert answer == ("2", "2")


async def test_where_requests_do_not_finish_in_time_nothing_is_loaded(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own=LOADS, drain_timeout_s=0.3) as client:
        upstream.checks_pass = True
        upstream.open.clear()
        under_way = asyncio.create_task(client.infer(sent()))
        await upstream.arrival()
        why = await swapped(client)
        upstream.open.set()

        assert [whose(await under_way), whose(await client.infer(sent()))] == [("1", "1"), ("1", "1")]
    assert "did not finish within 0.300 s, so nothing was loaded there" in why
    assert upstream.asked["RepositoryModelLoad"] == 0


async def test_another_boundary_for_the_same_network_needs_nothing_of_the_server(
    tmp_path: Path, upstream: ModelServer
) -> None:
    repository = tmp_path / "models"
    for boundary in (ACCEPTS_ALL, FLAGS_ALL):
        write_tiny_artifact(repository, model=OLD, boundary_bits=boundary, probed=True)
    async with serving_the_first(upstream, repository, own=LOADS) as client:
        assert await swapped(client) == ""
        verdict = values((await client.infer(sent())).parameters)["guard_verdict"]

    assert (verdict, upstream.asked["RepositoryModelLoad"]) == ("flag", 0)


async def test_without_leave_to_load_a_server_that_answers_otherwise_keeps_its_version(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own={}) as client, Crowd(client) as crowd:
        why = await swapped(client)
        await crowd.more()
        assert await serves(client) == "1"

    assert crowd.errors == []
    assert crowd.seen == {("1", "1")}
    assert 'exchange the model there and swap then, or let the guard do that: upstream_load = "swap"' in why


async def test_readiness_tells_that_the_model_is_being_exchanged(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.loads_open.clear()
    async with serving_the_first(upstream, repository, own=LOADS) as client:
        swap = asyncio.create_task(swapped(client))
        await until(lambda: upstream.asked["RepositoryModelLoad"])
        meanwhile = (await client.stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
        held = asyncio.create_task(client.infer(sent()))
        await held_here(client, 1)
        upstream.loads_open.set()

        assert await swap == ""
        assert whose(await held) == ("2", "2")
        assert (meanwhile, await readiness(client)) == (False, {True})
