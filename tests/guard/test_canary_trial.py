"""A candidate on the traffic: who answers, what is compared, and that whatever it does no caller notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_edits import edit_profile
from canary_house import DARK, IMAGES, Clock, Failing, Taking, trying
from fake_classifier import GatedClassifier

from guard.errors import InputRejectedError, UncheckableInputError, UnknownModelError
from guard.runtime.loader import LoadedModel
from tests.tiny_models import linear_classifier, nan_in_the_dark

POLICIES = ("enforce", "flag", "monitor")


@pytest.fixture(autouse=True)
def no_device_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("device-")] == []


# Who answers


async def test_the_candidate_answers_its_exact_share_of_whole_requests(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        before = await house.versions(5)
        await house.room.start_canary("tiny", "2", share=0.25)
        during = await house.versions(200, IMAGES[:2])
        await house.compared()

        assert before == ["1"] * 5
        assert during.count("2") == house.figures["requests"] == house.figures["answered"] == 50
        assert house.figures["rows"] == 100
        assert house.count("guard_canary_requests_total", outcome="answered") == 50
        assert house.count("guard_canary_share_ratio") == 0.25
        assert house.count("guard_inputs_total", verdict="accept") == 405  # a shadow is no input


async def test_a_version_that_is_named_answers_itself(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        named = [(await house.infer(version=version)).model_version for version in ("1", "2", "1", "2")]

        assert (named, house.figures["requests"]) == (["1", "2", "1", "2"], 0)
        with pytest.raises(UnknownModelError, match=r"version '3' of model 'tiny' .* loaded: '1', '2'"):
            await house.infer(version="3")
        assert [await house.plane.model_ready("tiny", version) for version in ("", "1", "2", "3")] == [
            *(True, True, True, False),
        ]
        assert (await house.plane.describe("tiny", "")).versions == ("1", "2")
        assert (await house.plane.describe("tiny", "2")).versions == ("2",)

        await house.room.stop_canary("tiny")
        with pytest.raises(UnknownModelError, match=r"loaded: '1'$"):
            await house.infer(version="2")


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_policy_holds_for_the_candidate_as_well(tmp_path: Path, policy: str) -> None:
    async with trying(tmp_path, policy=policy, candidates=[{"boundary_bits": 4.0}]) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        if policy == "enforce":
            with pytest.raises(InputRejectedError, match="row 0 of 1 looks triggered"):
                await house.infer()
        else:
            answer = await house.infer()
            expected = {"flag": "flag", "monitor": "pending"}[policy]
            assert (answer.model_version, answer.parameters["guard_verdict"]) == ("2", expected)
        await house.compared()

        verdict = "reject" if policy == "enforce" else "flag"
        assert house.count("guard_inputs_total", verdict=verdict) == 1
        assert (house.figures["rejected_by_candidate"], house.figures["rejected_by_current"]) == (1, 0)
        assert house.count("guard_canary_rows_total", finding="rejected_by_candidate") == 1


# What is compared


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_same_model_is_found_to_be_the_same(tmp_path: Path, policy: str) -> None:
    async with trying(tmp_path, policy=policy) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        for _ in range(10):
            await house.infer(IMAGES)
            await house.compared()  # else there may be no room in the line for the next one's

        figures = house.figures
        assert (figures["rows"], figures["shadow_dropped"]) == (160, 0)
        names = ("errors", "class_disagreements", "verdict_disagreements", "mean_entropy_difference_bits")
        assert [figures[name] for name in names] == [0, 0, 0, 0]
        assert house.count("guard_canary_rows_total", finding="same") == 160
        assert house.canary.running


async def test_the_traffic_goes_before_the_comparison(tmp_path: Path) -> None:
    gates: list[GatedClassifier] = []

    def devices(model: LoadedModel) -> Any:
        if model.version == "2":
            return None
        gates.append(GatedClassifier(model.classifier))
        return gates[-1]

    async with trying(tmp_path, devices=devices) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        assert await house.versions(3, IMAGES) == ["2"] * 3  # nobody waits for the device that is held
        await house.until(lambda: house.figures["shadow_dropped"] == 2)

        current = house.slot.current.scheduler
        assert current.rows == 16  # of the one that was begun; a quarter of the line is 25
        assert house.count("guard_canary_shadows_dropped_total") == 2
        gates[0].let_all_go()
        await house.until(lambda: house.figures["rows"] == 16)
        await house.room.stop_canary("tiny")


async def test_a_shadow_gives_way_to_the_end_of_the_trial(tmp_path: Path) -> None:
    gates: list[GatedClassifier] = []

    def devices(model: LoadedModel) -> Any:
        gates.append(GatedClassifier(model.classifier))
        if model.version == "2":
            gates[-1].let_all_go()
        return gates[-1]

    async with trying(tmp_path, devices=devices) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        await house.versions(1, IMAGES)
        await house.until(lambda: house.slot.current.scheduler.rows == 16)
        status = await house.room.stop_canary("tiny")

        assert house.slot.current.scheduler.rows == 0
        assert (status.running, status.outcome, status.figures["rows"]) == (False, "stopped", 0)
        gates[0].let_all_go()


# What is wrong with a candidate


async def rolled_back(house: Any, outcome: str) -> None:
    """Check all that is told of a canary that was rolled back."""
    canary = house.canary
    [status] = await house.room.status("tiny")
    assert (canary.running, canary.candidate.version) == (False, "2")
    assert canary.outcome.startswith(f"rolled back for {outcome}: ")
    kind, fields = house.kept.events[-1]
    assert (kind, fields["version"], fields["outcome"]) == ("canary_rolled_back", "2", outcome)
    assert fields["figures"] == house.figures
    assert canary.outcome.endswith(fields["why"])
    assert house.count("guard_canaries_ended_total", outcome=outcome) == 1
    assert house.count("guard_canary_share_ratio") == 0
    [failure] = status.failures
    assert (status.current.version, failure.version) == ("1", "2")
    assert failure.error == canary.outcome
    assert house.kept.tiny.newer() is None  # nor does a watcher take it over
    await house.slot.drained()
    assert [model.version for model in house.slot.held] == ["1"]
    assert await house.versions(3) == ["1"] * 3


async def test_a_candidate_of_other_classes_is_rolled_back_for_disagreement(tmp_path: Path) -> None:
    async with trying(tmp_path, candidates=[{"model": linear_classifier(seed=5)}]) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        await house.infer_until_ended(most=5)
        await rolled_back(house, "disagreement")
        assert house.count("guard_canary_rows_total", finding="class_differs") >= 10


@pytest.mark.parametrize("block_bits", [None, 0.0], ids=["refuses", "only flags"])
async def test_a_candidate_that_finds_too_much_suspicious_is_rolled_back_for_it(
    tmp_path: Path, block_bits: float | None
) -> None:
    async with trying(tmp_path, candidates=[{"boundary_bits": 4.0, "block_bits": block_bits}]) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        await house.infer_until_ended(most=5)
        await rolled_back(house, "rejections")
        assert house.figures["rejected_by_candidate"] == house.figures["rows"] == 32


@pytest.mark.parametrize("policy", POLICIES)
async def test_no_caller_sees_the_nan_of_a_candidate(tmp_path: Path, policy: str) -> None:
    async with trying(tmp_path, policy=policy, candidates=[{"model": nan_in_the_dark()}]) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        answers = await house.infer_until_ended(most=5, images=DARK)

        assert [answer.model_version for answer in answers] == ["1", "1"]
        assert np.isfinite([answer.outputs[0].data for answer in answers]).all()
        await rolled_back(house, "errors")
        assert house.figures["errors"] == 2
        assert house.count("guard_canary_requests_total", outcome="failed") == 2
        await house.until(lambda: house.count("guard_inputs_total", verdict="accept") == 5)
        assert house.count("guard_inputs_total", verdict="unchecked") == 0


@pytest.mark.parametrize("policy", POLICIES)
async def test_no_caller_sees_that_a_candidate_raises(tmp_path: Path, policy: str) -> None:
    failing = {"2": Failing()}
    async with trying(tmp_path, policy=policy, devices=lambda model: failing.get(model.version)) as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        answers = await house.infer_until_ended(most=20)

        assert {answer.model_version for answer in answers} == {"1"}
        await rolled_back(house, "errors")
        assert house.count("guard_uncheckable_inputs_total", reason="check_failed", outcome="refused") == 0


async def test_a_slow_candidate_is_rolled_back_for_latency(tmp_path: Path) -> None:
    clock = Clock()

    def devices(model: LoadedModel) -> Taking:
        return Taking(model.classifier, clock, {"1": 0.01, "2": 1.0}[model.version])

    async with trying(tmp_path, devices=devices, clock=clock) as house:
        await house.room.start_canary("tiny", "2", share=0.5)
        for _ in range(500):
            await house.infer()
            if not house.kept.tiny.served.trial:
                break

        await rolled_back(house, "latency")
        assert house.figures["slow_answers"] >= 100
        assert house.figures["candidate_p50_seconds"] >= 1.0 > house.figures["current_p99_seconds"] > 0.0
        assert house.count("guard_canary_seconds_count", answered_by="candidate") >= 100


async def test_a_candidate_that_hangs_leaves_time_for_the_current_version(tmp_path: Path) -> None:
    gates: dict[str, GatedClassifier] = {}

    def devices(model: LoadedModel) -> GatedClassifier | None:
        return gates.setdefault("2", GatedClassifier(model.classifier)) if model.version == "2" else None

    async with trying(tmp_path, devices=devices, request_timeout_s=6.0) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        answer = await house.infer()

        assert (answer.model_version, house.figures["errors"]) == ("1", 1)
        gates["2"].let_all_go()


async def test_what_only_the_candidate_cannot_check_is_its_fault(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        narrow = tmp_path / "models" / "tiny" / "2"
        edit_profile(narrow, lambda profile: profile["input"].update(high=[0.5]))
        await house.room.start_canary("tiny", "2", share=1.0)

        assert (await house.infer(np.full_like(DARK, 0.9))).model_version == "1"
        assert house.figures["errors"] == 1
        with pytest.raises(UncheckableInputError, match="outside the calibrated range 0 to 1"):
            await house.infer(np.full_like(DARK, 1.5))
        assert (house.figures["errors"], house.figures["requests"]) == (1, 2)
