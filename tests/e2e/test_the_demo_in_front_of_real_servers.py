"""The demo's backdoored network on the real Triton, MLServer and KServe; real images, the true trigger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnx
import pytest
import pytest_asyncio

import peers
from benchmarks.demo.__main__ import MODEL
from benchmarks.demo.data import load_clean_images
from benchmarks.demo.trigger import load_trigger
from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions
from tests.e2e.kserve_process import KServe
from tests.e2e.mlserver_process import MLServer
from tests.e2e.peer_process import PeerProcess
from tests.e2e.perf_analyzer_process import PerfAnalyzer
from tests.e2e.triton_process import Triton, write_model
from tests.guard.upstream_house import refused, sent, values
from tests.serving import serving

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

N_CALIBRATION: Final = 700
N_ASKED: Final = 60
CALLS_S: Final = 60.0
CLIENTS: Final = {
    "triton": Path(__file__).with_name("triton_upstream_calls.py"),
    "kserve": Path(__file__).with_name("kserve_client_calls.py"),
}


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """Return images to calibrate with, and others: as they are, or of another class with the trigger."""
    pixels, labels, _ = load_clean_images()
    floats = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    trigger = load_trigger()
    others, asked = floats[N_CALIBRATION:], labels[N_CALIBRATION:]
    affected = others[trigger.applies_to(asked)][:N_ASKED]
    return {
        "calibration": floats[:N_CALIBRATION],
        "clean": others[-N_ASKED:],
        "suspicious": trigger.stamp(affected),
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, images: dict[str, np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    np.savez(folder / "clean.npz", images=images["calibration"])
    calibrate(
        CalibrateOptions(
            model=MODEL,
            data=folder / "clean.npz",
            out=folder / "repository" / "demo",
            overlays=32,
            seed=0,
            threads=1,
            quiet=True,
        )
    )
    return folder / "repository"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["triton", "mlserver", "kserve"])
async def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PeerProcess]:
    folder, model = tmp_path_factory.mktemp(request.param), onnx.load(MODEL)
    home = await asyncio.to_thread(peers.environment, request.param)
    if request.param == "triton":
        server: Any = Triton(home, folder, "demo")
        write_model(server.repository, "demo", model, max_batch_size=16)
    else:
        server = {"mlserver": MLServer, "kserve": KServe}[request.param](home, folder)
        server.write("demo", model)
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


async def said_by(client: str, address: str, arrays: Path) -> dict[str, Any]:
    """Return what an unmodified client, in an environment of its own, sees."""
    home = await asyncio.to_thread(peers.environment, client)
    process = await asyncio.create_subprocess_exec(
        *(home / "bin" / "python", CLIENTS[client], address, "demo", arrays), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(CALLS_S):
        output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output)
    return found


async def test_clean_images_are_answered_and_triggered_ones_are_refused_whoever_asks(
    server: PeerProcess, repository: Path, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = tmp_path / "images.npz"
    np.savez(arrays, clean=images["clean"], suspicious=images["suspicious"])
    async with serving(repository, models={"demo": {"upstream": server.address}}) as client:
        verdicts = []
        for image in images["clean"]:
            try:
                answer = await client.infer(sent(image[None], model="demo"))
                verdicts.append(values(answer.parameters)["guard_verdict"])
            except grpc.aio.AioRpcError as error:
                verdicts.append(error.code().name)
        for image in images["suspicious"]:
            refusal = await refused(client, sent(image[None], model="demo"))
            assert refusal.code() is grpc.StatusCode.PERMISSION_DENIED
        address = f"127.0.0.1:{client.server.port}"
        by_triton = await said_by("triton", address, arrays)
        by_kserve = await said_by("kserve", address, arrays)
        analyser = PerfAnalyzer(tmp_path)
        data = ("--input-data", str(analyser.write_images("images", images["clean"][:3])))
        measured = await asyncio.to_thread(
            analyser.run, address, "demo", *data, "--request-count", "20", limit_s=CALLS_S
        )

    assert set(verdicts) <= {"accept", "PERMISSION_DENIED"}
    assert verdicts.count("accept") >= N_ASKED - 3  # 1 % of 60 is less than one
    for seen in (by_triton, by_kserve):
        assert seen["ready"] == [True, True, True]
        assert "PERMISSION_DENIED" in seen["suspicious"]["status"]
    assert by_triton["clean"]["verdict"] == by_kserve["raw"]["verdict"] == "accept"
    assert [row.per_second > 0 for row in measured] == [True]
