"""The real Triton behind the guard, called by its own client, which notices nothing but the verdicts."""

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

from guard.rpc.pb import open_inference_pb2 as pb
from tests.e2e.triton_process import Triton, environment, write_model
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, in_front_of, sent, tiny_repository, values
from tests.reference_check import linear_logits
from tests.serving import Client
from tests.tiny_models import linear_classifier

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

CALLS = Path(__file__).with_name("triton_upstream_calls.py")
MODES = pytest.mark.parametrize("check", ["local", "upstream"])
PATIENCE_S = 90.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    home = await asyncio.to_thread(environment)
    server = Triton(home, folder, "signs")
    write_model(server.repository, "signs", linear_classifier(), max_batch_size=4)
    np.savez(folder / "images.npz", clean=CLEAN, suspicious=SUSPICIOUS)
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


async def called(triton: Triton, address: str, model: str) -> dict[str, Any]:
    """Run the client beside this process and return what it saw."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = (address, model, str(triton.folder / "images.npz"))
    process = await asyncio.create_subprocess_exec(
        triton.python,
        CALLS,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean,
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    seen: dict[str, Any] = json.loads(output)
    return seen


@MODES
async def test_tritons_client_sees_the_same_through_the_guard_and_the_verdicts_beside_it(
    triton: Triton, tmp_path: Path, check: str
) -> None:
    own = {"upstream_model": "signs", "upstream_check": check}
    async with in_front_of(triton, tiny_repository(tmp_path), own=own) as client:
        through = await called(triton, f"127.0.0.1:{client.server.port}", "tiny")
    direct = await called(triton, triton.address, "signs")

    assert through["ready"] == direct["ready"] == [True, True, True]
    assert through["metadata"] == direct["metadata"] | {"name": "tiny"}
    assert through["config"] == direct["config"] | {"name": "tiny"}
    for answer, same in zip(
        [through["clean"], *through["one by one"]], [direct["clean"], *direct["one by one"]], strict=True
    ):
        assert answer == same | {"verdict": "accept"}
    np.testing.assert_allclose(through["clean"]["logits"], linear_logits(CLEAN[:2]), atol=1e-4)
    assert through["suspicious"]["status"] == "StatusCode.PERMISSION_DENIED"
    assert "logits" in direct["suspicious"]
    assert through["too many"] == direct["too many"]  # Triton's own status and words
    assert through["too many"]["status"] == "StatusCode.INVALID_ARGUMENT"
    assert through["wrong output"] == direct["wrong output"]
    assert through["two classes"] == direct["two classes"] | {"verdict": "accept"}
    assert len(direct["two classes"]["classes"]) == 2
    for refused in ("wrong shape", "wrong name"):
        assert through[refused]["status"] == "StatusCode.INVALID_ARGUMENT"
    assert (through["wrong version"]["status"], direct["wrong version"]["status"]) == (
        *("StatusCode.NOT_FOUND", "StatusCode.NOT_FOUND"),
    )


async def test_triton_is_killed_and_comes_back(triton: Triton, tmp_path: Path) -> None:
    own = {"upstream_model": "signs"}
    async with in_front_of(triton, tiny_repository(tmp_path), own=own) as client:
        assert values((await client.infer(sent())).parameters)["guard_verdict"] == "accept"
        await asyncio.to_thread(triton.kill)
        await becomes(client, False)
        await asyncio.to_thread(triton.start)
        await becomes(client, True)
        assert values((await client.infer(sent())).parameters)["guard_verdict"] == "accept"


async def becomes(client: Client, ready: bool) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.stub.ServerReady(pb.ServerReadyRequest())).ready != ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
