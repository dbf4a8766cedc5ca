"""Starting, promoting and stopping a canary, and all that may happen while one runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_edits import replace_model
from canary_house import IMAGES, trying
from fake_classifier import GatedClassifier

from guard.control import Control
from guard.control.served_versions import ServedVersions
from guard.control.watcher import look
from guard.errors import BusyError, CandidateError, OperationError, ShuttingDownError, UnknownModelError
from guard.runtime.loader import LoadedModel
from tests.artifacts import write_tiny_artifact
from tests.tiny_models import linear_classifier, not_a_number_classifier


@pytest.fixture(autouse=True)
def no_device_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("device-")] == []


async def test_the_status_says_what_is_tried(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        assert isinstance(house.room, Control)
        assert house.canary is None
        started = await house.room.start_canary("tiny", "2", share=0.1, actor="ops")

        assert (started.candidate.version, started.share, started.running) == ("2", 0.1, True)
        assert (started.outcome, started.figures["requests"]) == ("", 0)
        assert house.canary == started
        assert await house.room.status() == await house.room.status("tiny")
        assert house.kept.events[-1] == (
            "canary_started",
            {
                "model": "tiny",
                "version": "2",
                "digest": started.candidate.digest,
                "actor": "ops",
                "share": 0.1,
            },
        )


async def test_a_promotion_is_one_switch_to_what_is_loaded(tmp_path: Path) -> None:
    async with trying(tmp_path, state_dir=tmp_path / "state") as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        await house.versions(4)
        candidate = house.slot.candidate
        report = await house.room.promote("tiny", actor="ops")

        assert (report.old.version, report.new.version, report.changed, report.note) == ("1", "2", True, "")
        assert (house.slot.current, house.slot.candidate) == (candidate, None)
        assert len(house.loads) == 2
        assert house.kept.events[-1][0] == "promoted"
        assert house.kept.events[-1][1]["actor"] == "ops"
        assert (house.canary.running, house.canary.outcome) == (False, "promoted")
        assert house.canary.figures["requests"] == 2
        assert await house.versions(3) == ["2"] * 3
        assert house.count("guard_canaries_ended_total", outcome="promoted") == 1
        assert house.count("guard_swaps_total", outcome="swapped") == 1
        assert ServedVersions(tmp_path / "state").read()["tiny"].current.version == "2"

        back = await house.room.rollback("tiny")
        assert back.new.digest == report.old.digest
        await house.slot.drained()
        assert [model.version for model in house.slot.held] == ["1"]


async def test_a_stopped_candidate_finishes_what_it_began(tmp_path: Path) -> None:
    gates: list[GatedClassifier] = []

    def devices(model: LoadedModel) -> Any:
        if model.version == "1":
            return None
        gates.append(GatedClassifier(model.classifier))
        return gates[-1]

    async with trying(tmp_path, devices=devices) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        running = asyncio.create_task(house.infer())
        await gates[0].next_call()
        stopped = await house.room.stop_canary("tiny", actor="ops")

        assert (stopped.running, stopped.outcome) == (False, "stopped")
        assert await house.versions(2) == ["1", "1"]
        assert [model.version for model in house.slot.held] == ["1", "2"]
        gates[0].let_all_go()
        assert (await running).model_version == "2"
        await house.slot.drained()
        assert [model.version for model in house.slot.held] == ["1"]
        assert house.kept.events[-1][0] == "canary_stopped"
        assert house.count("guard_canaries_ended_total", outcome="stopped") == 1
        assert house.kept.tiny.newer() is None
        assert (await house.room.status("tiny"))[0].failures == ()


async def test_what_serves_is_not_changed_under_a_candidate(tmp_path: Path) -> None:
    async with trying(tmp_path, candidates=[{}, {}]) as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        for refused in (
            house.room.swap("tiny", "3"),
            house.room.rollback("tiny"),
            house.room.start_canary("tiny", "3", share=0.5),
        ):
            with pytest.raises(
                BusyError, match=r"version '2' of model 'tiny' is tried .* `guard promote` it or"
            ):
                await refused

        await house.room.stop_canary("tiny")
        assert (await house.room.swap("tiny", "3")).new.version == "3"


async def test_a_watcher_waits_for_the_end_of_a_trial_and_takes_over_what_is_newer_than_it(
    tmp_path: Path,
) -> None:
    async with trying(tmp_path) as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        await look(house.kept.tiny)
        assert (house.kept.serving, house.canary.running) == ("1", True)

        await house.room.stop_canary("tiny")
        await look(house.kept.tiny)
        assert house.kept.serving == "1"
        write_tiny_artifact(tmp_path / "models", boundary_bits=0.0)
        await look(house.kept.tiny)
        assert house.kept.serving == "3"


async def test_a_stopped_version_can_be_tried_again(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        for share in (0.5, 1.0):
            await house.room.start_canary("tiny", "2", share=share)
            assert "2" in await house.versions(4)
            await house.room.stop_canary("tiny")
        assert house.canary.share == 1.0


async def test_without_a_candidate_there_is_nothing_to_promote_or_stop(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        for refused in (house.room.promote("tiny"), house.room.stop_canary("tiny")):
            with pytest.raises(
                OperationError, match="no candidate that is tried; `guard canary start` starts"
            ):
                await refused
        for unknown in (
            house.room.promote("nope"),
            house.room.stop_canary("nope"),
            house.room.start_canary("nope", "2", share=0.5),
        ):
            with pytest.raises(UnknownModelError):
                await unknown
        with pytest.raises(UnknownModelError):
            await house.room.status("nope")


@pytest.mark.parametrize(
    ("version", "words"), [("1", "serves already"), ("9", "not in the repository"), ("2", "NaN or infinite")]
)
async def test_a_candidate_that_cannot_serve_is_not_tried(tmp_path: Path, version: str, words: str) -> None:
    async with trying(tmp_path) as house:
        replace_model(tmp_path / "models" / "tiny" / "2", not_a_number_classifier())
        with pytest.raises(CandidateError, match=words):
            await house.room.start_canary("tiny", version, share=0.5)

        assert (house.canary, house.kept.tiny.served.trial, house.slot.candidate) == (None, None, None)
        assert await house.versions(2) == ["1", "1"]


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
async def test_a_share_that_is_none_is_refused_before_anything_is_loaded(
    tmp_path: Path, share: float
) -> None:
    async with trying(tmp_path) as house:
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            await house.room.start_canary("tiny", "2", share=share)
        assert len(house.loads) == 1


async def test_a_shutdown_ends_a_trial_and_closes_both_versions(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        await house.versions(3, IMAGES)
        house.kept.keeper.begin_shutdown()
        for refused in (
            house.room.promote("tiny"),
            house.room.stop_canary("tiny"),
            house.room.start_canary("tiny", "2", share=0.5),
        ):
            with pytest.raises(ShuttingDownError):
                await refused
        assert await house.versions(2) == ["2", "2"]  # what is still coming is still answered

    assert house.slot.held == ()


async def test_a_restart_serves_the_current_version_and_tries_nothing(tmp_path: Path) -> None:
    async with trying(tmp_path, state_dir=tmp_path / "state") as house:
        await house.room.start_canary("tiny", "2", share=0.5)
    async with trying(tmp_path, state_dir=tmp_path / "state", candidates=[]) as house:
        [status] = await house.room.status()

        assert status.current is not None
        assert (status.current.version, status.available, status.canary) == ("1", ("1", "2"), None)


async def test_a_rollback_while_requests_run_loses_none(tmp_path: Path) -> None:
    other = {"model": linear_classifier(seed=5)}
    async with trying(tmp_path, candidates=[other]) as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        answers = await asyncio.gather(*(house.infer(IMAGES[:4]) for _ in range(20)))
        await house.compared()
        if house.canary.running:  # comparisons were dropped while so many were under way
            await house.infer_until_ended(most=20)

        assert house.canary.outcome.startswith("rolled back for disagreement")
        assert {answer.model_version for answer in answers} == {"1", "2"}
        await house.slot.drained()
        assert [model.version for model in house.slot.held] == ["1"]
        assert house.slot.current.scheduler.rows == 0
