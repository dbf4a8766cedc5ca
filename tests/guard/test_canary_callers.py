"""What is a caller's own doing is not held against a candidate: nobody can have it rolled back by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canary_house import DARK, IMAGES, Failing, trying
from fake_classifier import GatedClassifier

from guard.errors import DeadlineError
from guard.messages import InferRequest, Tensor
from guard.runtime.loader import LoadedModel

NOT_A_NUMBER = np.full_like(DARK, np.nan)


async def hurried(house: Any, timeout_s: float) -> str:
    """Ask with a deadline of the caller's own; return who answered, nobody if it is over."""
    request = InferRequest("tiny", (Tensor("images", "FP32", IMAGES[:1]),), timeout_s=timeout_s)
    try:
        return str((await house.plane.infer(request)).model_version)
    except DeadlineError:
        return "nobody"


@pytest.mark.parametrize("policy", ["monitor", "flag"])
async def test_an_input_that_nobody_can_check_rolls_no_candidate_back(tmp_path: Path, policy: str) -> None:
    async with trying(tmp_path, policy=policy) as house:
        house.kept.tiny.served.on_uncheckable = "answer"
        await house.room.start_canary("tiny", "2", share=1.0)

        assert await house.versions(5, NOT_A_NUMBER) == ["1"] * 5
        assert (house.canary.running, house.figures["errors"], house.figures["requests"]) == (True, 0, 5)


async def test_a_candidate_that_fails_on_what_can_be_checked_is_rolled_back_all_the_same(
    tmp_path: Path,
) -> None:
    failing = {"2": Failing()}
    async with trying(tmp_path, policy="monitor", devices=lambda model: failing.get(model.version)) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        assert await house.versions(3, NOT_A_NUMBER) == ["1"] * 3
        assert await house.versions(2) == ["1"] * 2
        assert house.canary.outcome.startswith("rolled back for errors: 2 of 2 requests")


async def test_a_deadline_too_short_for_anybody_rolls_no_candidate_back(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        await house.room.start_canary("tiny", "2", share=1.0)

        assert "2" not in [await hurried(house, 1e-9) for _ in range(5)]
        assert (house.canary.running, house.figures["errors"], house.figures["requests"]) == (True, 0, 5)


async def test_a_candidate_that_hangs_is_rolled_back_whatever_deadlines_callers_set(tmp_path: Path) -> None:
    gates: dict[str, GatedClassifier] = {}

    def devices(model: LoadedModel) -> GatedClassifier | None:
        return gates.setdefault("2", GatedClassifier(model.classifier)) if model.version == "2" else None

    async with trying(tmp_path, devices=devices) as house:
        await house.room.start_canary("tiny", "2", share=1.0)
        trial: Any = house.kept.tiny.served.trial
        for _ in range(100):
            trial.current_answered(0.01)
        for timeout_s, errors in ((0.05, 0), (0.07, 1), (0.07, 2)):  # half of it is the candidate's
            await hurried(house, timeout_s)
            assert house.figures["errors"] == errors
        assert house.canary.outcome.startswith("rolled back for errors: 2 of 2 requests failed")
        gates["2"].let_all_go()


async def test_who_names_the_candidate_is_not_taken_for_the_current_versions_speed(tmp_path: Path) -> None:
    async with trying(tmp_path) as house:
        await house.room.start_canary("tiny", "2", share=0.01)
        await house.infer(version="2")
        assert "current_p50_seconds" not in house.figures
        await house.infer(version="1")
        assert "current_p50_seconds" in house.figures
