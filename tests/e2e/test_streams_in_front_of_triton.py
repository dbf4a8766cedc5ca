"""The real Triton behind the guard, asked over streams by its own client: the same answers, and verdicts."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.e2e.triton_process import Triton, environment, write_model
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, in_front_of, tiny_repository
from tests.tiny_models import linear_classifier

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

CALLS = Path(__file__).with_name("triton_stream_calls.py")
PATIENCE_S = 90.0
ONE_OF_EACH = ("clean", "suspicious", "bad shape", "too many rows", "clean")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Any, Any]]:
    """What the client saw, straight from Triton and through the guard."""
    folder = tmp_path_factory.mktemp("triton")
    triton = Triton(await asyncio.to_thread(environment), folder, "signs")
    write_model(triton.repository, "signs", linear_classifier(), max_batch_size=4)
    np.savez(folder / "images.npz", clean=CLEAN, suspicious=SUSPICIOUS)
    await asyncio.to_thread(triton.start)
    direct = await called(triton, triton.address, "signs")
    guard = folder / "guard"
    guard.mkdir()
    own = {"upstream_model": "signs"}
    async with in_front_of(triton, tiny_repository(guard), own=own) as client:
        through = await called(triton, f"127.0.0.1:{client.server.port}", "tiny")
    await asyncio.to_thread(triton.kill)
    yield direct, through


async def called(triton: Triton, address: str, model: str) -> dict[str, Any]:
    """Run the client beside this process and return what it saw."""
    process = await asyncio.create_subprocess_exec(
        triton.python,
        CALLS,
        *(address, model, str(triton.folder / "images.npz")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    answer: dict[str, Any] = json.loads(output)
    return answer


async def test_a_long_stream_brings_tritons_answers_in_order_with_verdicts(seen: tuple[Any, Any]) -> None:
    direct, through = seen

    assert [one["id"] for one in direct["many"]] == [f"id-{number}" for number in range(64)]
    assert through["many"] == [one | {"verdict": "accept"} for one in direct["many"]]
    assert {one["final"] for one in direct["many"]} == {True}  # and so of the guard's
    assert through["final wanted"] == [one | {"verdict": "accept"} for one in direct["final wanted"]]


async def test_a_message_that_is_refused_does_not_end_the_stream(seen: tuple[Any, Any]) -> None:
    direct, through = (dict(zip(ONE_OF_EACH[:-1], one["mixed"], strict=False)) for one in seen)

    assert seen[1]["mixed"][-1] == seen[0]["mixed"][-1] | {"verdict": "accept"}
    assert "logits" in direct["suspicious"]
    assert through["suspicious"]["words"].startswith("[StatusCode.PERMISSION_DENIED] rejected: row 0 of 1")
    assert through["bad shape"]["words"].startswith("[StatusCode.INVALID_ARGUMENT] input 'images' has shape")
    too_many = direct["too many rows"]["words"]  # Triton's own words, behind their status
    assert through["too many rows"]["words"] == f"[StatusCode.INVALID_ARGUMENT] {too_many}"
    [unknown] = seen[1]["unknown model"]
    assert unknown["words"].startswith("[StatusCode.NOT_FOUND] model 'nope' is not served here")


async def test_where_the_client_wants_a_status_the_stream_ends_with_it(seen: tuple[Any, Any]) -> None:
    answered, refused = seen[1]["status wanted"]

    assert answered == seen[0]["status wanted"][0] | {"verdict": "accept"}
    assert refused["status"] == "StatusCode.PERMISSION_DENIED"
    assert refused["words"].startswith("rejected: row 0 of 1")


async def test_statistics_are_tritons_with_the_guards_count_of_requests(seen: tuple[Any, Any]) -> None:
    direct, through = (one["statistics"] for one in seen)

    assert (through["name"], through["version"]) == ("tiny", direct["version"])
    assert (direct["success"], direct["fail"]) == (70, 0)  # what it refuses at its door it does not count
    assert (through["success"], through["inference_count"], through["fail"]) == (68, 69, 4)
    assert through["execution_count"] == through["compute_infer"] > direct["execution_count"]
    assert through["last_inference"] >= direct["last_inference"]
    assert seen[1]["unknown statistics"]["status"] == "StatusCode.NOT_FOUND"


async def test_only_what_the_guard_serves_is_listed_and_only_what_it_can_is_advertised(
    seen: tuple[Any, Any],
) -> None:
    direct, through = seen

    assert (direct["index"], through["index"]) == (["signs"], ["tiny"])
    assert through["extensions"] == ["model_configuration", "classification", "statistics"]
    assert set(through["extensions"]) < set(direct["extensions"])
