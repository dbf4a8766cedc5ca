"""Versions side by side on a model server: each is asked for by its number, and no request notices a swap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from guard.admin.wording import swap_lines
from guard.errors import CandidateError
from tests.guard.swap_house import (
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
from tests.guard.upstream_house import be_patient, hear_of_breaks, refused, sent
from tests.model_server import ModelServer

SAME: dict[str, object] = {"upstream_version": "same", "upstream_load": "swap"}
MODES = pytest.mark.parametrize("check", ["local", "upstream"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_versions(tmp_path)


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(OLD) as server:
        server.brings = lambda there: there.add("2", NEW)
        yield server


@MODES
async def test_a_swap_loads_the_version_there_and_no_client_loses_a_request(
    repository: Path, upstream: ModelServer, check: str
) -> None:
    own = SAME | {"upstream_check": check}
    async with serving_the_first(upstream, repository, own=own) as client, Crowd(client) as crowd:
        report = await client.server.control.swap("tiny", "2")
        await crowd.more()
        after = whose(await client.infer(sent()))
        back = await client.server.control.rollback("tiny")
        await crowd.more()
        rolled_back = whose(await client.infer(sent()))

    assert crowd.errors == []
    assert crowd.seen == {("1", "1"), ("2", "2")}  # never the one's answer by the other's boundary
    assert (after, rolled_back) == (("2", "2"), ("1", "1"))
    assert {call.request.model_version for call in upstream.predictions} == {"1", "2"}
    assert upstream.asked["RepositoryModelLoad"] == 1  # it was still there for the way back
    assert [report.old.version, report.new.version, back.new.version] == ["1", "2", "1"]
    where = f"model server {upstream.address} (model 'tiny')"
    assert [step.words for step in report.steps] == [
        f"{where} is asked whether it has version '2'",
        f"{where} loads version '2'",
        "its answers are compared with those at calibration",
        "version '1' is compared again, for requests that began with it",
    ]
    assert f"  done      {where} loads version '2' ({report.steps[1].seconds:.2f} s)" in swap_lines(report)
    assert client.counted("guard_upstream_loads_total", "outcome") == {("ready",): 1}
    assert client.counted("guard_upstream_load_seconds_count") == {(): 1}


async def test_requests_that_began_with_the_old_version_are_answered_by_it(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own=SAME) as client:
        upstream.checks_pass = True
        upstream.open.clear()
        begun = asyncio.create_task(client.infer(sent()))
        await upstream.arrival()
        assert await swapped(client) == ""
        later = asyncio.create_task(client.infer(sent()))
        await upstream.arrival(2)
        upstream.open.set()

        assert [whose(await begun), whose(await later)] == [("1", "1"), ("2", "2")]


async def test_a_caller_may_name_the_version_that_serves_and_no_other(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own=SAME) as client:
        upstream.add("2", NEW)
        before = (await client.infer(sent(model_version="1"))).model_version
        early = await refused(client, sent(model_version="2"))
        assert await swapped(client) == ""
        after = (await client.infer(sent(model_version="2"))).model_version
        late = await refused(client, sent(model_version="1"))

    assert (before, after) == ("1", "2")
    assert early.code() is late.code() is grpc.StatusCode.NOT_FOUND
    assert upstream.asked["RepositoryModelLoad"] == 0


async def test_steps_and_failures_are_in_the_audit_log(repository: Path, upstream: ModelServer) -> None:
    log = repository.parent / "audit.jsonl"
    upstream.load_refusal = (grpc.StatusCode.INVALID_ARGUMENT, "no such folder")
    async with serving_the_first(upstream, repository, own=SAME, audit_log=log) as client:
        await swapped(client)

    records = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "upstream_step"]
    assert [(record["version"], record["actor"], record["error"] != "") for record in steps] == [
        ("2", "test", True),
        ("2", "test", True),
    ]
    assert "no such folder" in steps[1]["error"]
    assert sum(record["kind"] == "candidate_failed" for record in records) == 1


async def test_a_load_that_fails_leaves_the_old_version_serving(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.load_refusal = (grpc.StatusCode.INVALID_ARGUMENT, "no such folder")
    async with serving_the_first(upstream, repository, own=SAME) as client, Crowd(client) as crowd:
        why = await swapped(client)
        await crowd.more()

    assert crowd.errors == []
    assert crowd.seen == {("1", "1")}
    assert why == (
        f"version '2' of model 'tiny' cannot come to serve: model server {upstream.address} (model 'tiny') "
        f"does not load version '2', and says INVALID_ARGUMENT: no such folder; see to its files there and "
        f"swap again, or load it by the server's own means first; version '1' serves on"
    )
    assert client.counted("guard_upstream_loads_total", "outcome") == {("failed",): 1}


async def test_a_load_that_hangs_is_given_up_and_may_be_tried_again(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.loads_open.clear()
    async with (
        serving_the_first(upstream, repository, own=SAME, upstream_load_s=0.2) as client,
        Crowd(client) as crowd,
    ):
        why = await swapped(client)
        await crowd.more()
        upstream.loads_open.set()
        await until(lambda: "2" in upstream.beside)
        assert await swapped(client) == ""
        await crowd.more()

    assert crowd.errors == []
    assert crowd.seen == {("1", "1"), ("2", "2")}
    assert "did not load version '2' within 0.200 s, and may yet" in why
    assert why.endswith("; version '1' serves on")
    assert client.counted("guard_upstream_loads_total", "outcome") == {("late",): 1}


async def test_a_version_whose_answers_are_not_those_at_calibration_is_not_switched_in(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.brings = lambda there: there.add("2", OLD)
    async with serving_the_first(upstream, repository, own=SAME) as client, Crowd(client) as crowd:
        why = await swapped(client)
        upstream.brings = lambda there: there.add("2", NEW)
        assert await swapped(client) == ""  # what is there and wrong is loaded again
        await crowd.more()

    assert "answers the stored image 0 with logits up to" in why
    assert crowd.errors == []
    assert crowd.seen == {("1", "1"), ("2", "2")}


async def test_a_server_that_dies_while_it_loads_comes_back_with_the_old_version(
    repository: Path, upstream: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear_of_breaks(monkeypatch)
    upstream.loads_open.clear()
    async with serving_the_first(upstream, repository, own=SAME, upstream_wait_s=0.05) as client:
        swap = asyncio.create_task(swapped(client))
        await until(lambda: upstream.asked["RepositoryModelLoad"])
        await upstream.kill()
        why = await swap
        error = await refused(client, sent())
        await upstream.start()
        await becomes(client, True)
        be_patient(client)
        answer = whose(await client.infer(sent()))

    assert "cannot be reached, or broke off" in why
    assert "the model server is not ready for version '1' either" in why
    assert (error.code(), answer) == (grpc.StatusCode.UNAVAILABLE, ("1", "1"))


async def test_going_back_to_a_version_that_is_not_there_any_more_loads_it_or_says_so(
    repository: Path, upstream: ModelServer
) -> None:
    def only(there: ModelServer) -> None:
        there.version, there.beside = "2", {}
        there.load(NEW)

    upstream.brings = only
    async with serving_the_first(upstream, repository, own=SAME) as client:
        note = (await client.server.control.swap("tiny", "2")).note
        upstream.load_refusal = (grpc.StatusCode.INTERNAL, "no folder 1")
        with pytest.raises(CandidateError) as gone:
            await client.server.control.rollback("tiny")
        upstream.load_refusal = None
        upstream.brings = lambda there: there.add("1", OLD)
        await client.server.control.rollback("tiny")
        answer = whose(await client.infer(sent()))

    assert "version '1' is not what it was there any more" in note
    assert "does not load version '1', and says INTERNAL: no folder 1" in str(gone.value)
    assert str(gone.value).endswith("version '2' serves on")
    assert answer == ("1", "1")


async def test_a_swap_to_the_version_that_checks_loads_it_where_the_server_lost_it(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own=SAME, upstream_wait_s=0.05) as client:
        upstream.version = "7"
        await becomes(client, False)
        upstream.brings = lambda there: there.add("1", OLD)
        report = await client.server.control.swap("tiny", "1")
        await becomes(client, True)
        be_patient(client)
        answer = whose(await client.infer(sent()))

    assert (report.changed, len(report.steps), answer) == (False, 3, ("1", "1"))


async def test_what_the_guard_is_not_to_load_has_to_be_there(repository: Path, upstream: ModelServer) -> None:
    async with serving_the_first(upstream, repository, own={"upstream_version": "same"}) as client:
        why = await swapped(client)
        upstream.add("2", NEW)
        assert await swapped(client) == ""
        answer = whose(await client.infer(sent()))

    assert "says that version '2' of it is not ready; have version '2' loaded there and swap again" in why
    assert (answer, upstream.asked["RepositoryModelLoad"]) == (("2", "2"), 0)


async def test_a_server_that_keeps_the_latest_version_only_is_not_asked_to_load_one(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.kept = 1
    async with serving_the_first(upstream, repository, own=SAME) as client:
        why = await swapped(client)

    assert "keeps the latest 1 of a model's versions" in why
    assert "version_policy: { all { } }" in why
    assert upstream.asked["RepositoryModelLoad"] == 0


async def test_a_server_without_repository_calls_is_named_as_one(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.brings = None
    async with serving_the_first(upstream, repository, own=SAME) as client:
        why = await swapped(client)

    assert "has no model repository calls" in why
    assert "set upstream_load = \"never\"; version '1' serves on" in why


async def test_a_server_that_does_not_tell_versions_apart_gets_no_request(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.tells_versions_apart = False
    async with serving_the_first(upstream, repository, own=SAME, upstream_wait_s=0.05) as client:
        assert await readiness(client) == {False}
        error = await refused(client, sent())

    assert "says of every version that it is ready, so it does not tell them apart" in error.details()
    assert upstream.predictions == []


async def test_another_version_than_the_one_asked_for_is_never_passed_on(
    repository: Path, upstream: ModelServer
) -> None:
    async with serving_the_first(upstream, repository, own=SAME, upstream_wait_s=0.05) as client:
        upstream.tells_versions_apart = False
        upstream.version = "7"
        error = await refused(client, sent())

    assert "answered in version '7', where '1' was compared with the calibrated model" in error.details()


async def test_a_canary_is_refused_with_what_to_do_instead(repository: Path, upstream: ModelServer) -> None:
    async with serving_the_first(upstream, repository, own=SAME) as client:
        with pytest.raises(CandidateError, match=r"is answered by a model server.*swap to version '2'"):
            await client.server.control.start_canary("tiny", "2", share=0.5)
        assert await serves(client) == "1"


async def test_a_guard_that_stops_does_not_wait_for_a_load_that_hangs(
    repository: Path, upstream: ModelServer
) -> None:
    upstream.loads_open.clear()
    async with serving_the_first(upstream, repository, own=SAME, upstream_load_s=1000.0) as client:
        swap = asyncio.create_task(client.server.control.swap("tiny", "2"))
        await until(lambda: upstream.asked["RepositoryModelLoad"])
        [status] = await client.server.control.status("tiny")
    stopped = (await asyncio.gather(swap, return_exceptions=True))[0]

    assert status.doing == f"model server {upstream.address} (model 'tiny') loads version '2'"
    assert "is being unloaded" in str(stopped)
