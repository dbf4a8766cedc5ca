"""Versions exchanged in real model servers, side by side and in place, while clients ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import onnx
import pytest

import peers
from tests.artifacts import write_tiny_artifact
from tests.e2e.kserve_process import KServe
from tests.e2e.mlserver_process import MLServer
from tests.e2e.peer_process import PeerProcess
from tests.e2e.triton_process import CONFIG, MODEL, Triton
from tests.guard.swap_house import ACCEPTS_ALL, FLAGS_ALL, NEW, OLD, Crowd, swapped, whose
from tests.guard.upstream_house import in_front_of, sent
from tests.serving import Client

pytestmark = pytest.mark.peer

LOADS: dict[str, object] = {"upstream_load": "swap"}
SAME = LOADS | {"upstream_version": "same"}
PATIENT: dict[str, object] = {"policy": "flag", "upstream_wait_s": 60.0}
ALL = "\nversion_policy: { all { } }\n"

RUNTIME = """
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxRuntime(MLModel):
    async def load(self):
        path = Path(self.settings.parameters.uri) / "model.onnx"
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        [logits] = self.session.run(None, {"images": NumpyCodec.decode_input(payload.inputs[0])})
        outputs = [NumpyCodec.encode_output("logits", logits)]
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs
        )
"""


def calibrated(repository: Path, version: int) -> Path:
    """Write the next version: the first accepts everything, the second, another network, flags it."""
    model, boundary = {1: (OLD, ACCEPTS_ALL), 2: (NEW, FLAGS_ALL)}[version]
    return write_tiny_artifact(repository, model=model, boundary_bits=boundary, probed=True)


@asynccontextmanager
async def running(server: PeerProcess) -> AsyncIterator[None]:
    await asyncio.to_thread(server.start)
    try:
        yield
    finally:
        await asyncio.to_thread(server.kill)


def triton_on(repository: Path, folder: Path, more_config: str) -> Triton:
    """Return a Triton whose repository is the guard's own."""
    folder.mkdir()
    (folder / "models").symlink_to(repository)
    (repository / "tiny" / "config.pbtxt").write_text(
        CONFIG.format(name="tiny", max_batch_size=8, instances=1, dims=[3, 8, 8]) + more_config
    )
    (repository / "tiny" / "1" / "model.py").write_text(MODEL)
    return Triton(peers.environment("triton"), folder, "tiny")


def mlserver_version(folder: Path, model: onnx.ModelProto, version: str) -> None:
    """Write a version beside others, or the only one, without a name, where ``version`` is empty."""
    there = folder / "versions" / (version or "only")
    there.mkdir(parents=True, exist_ok=True)
    (there / "onnx_of_a_version.py").write_text(RUNTIME)
    (there / "model.onnx").write_bytes(model.SerializeToString())
    tensors = {
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }
    parameters = {"uri": str(there)} | ({"version": version} if version else {})
    settings = {
        "name": "tiny",
        "implementation": "onnx_of_a_version.OnnxRuntime",
        "parameters": parameters,
        **tensors,
    }
    (there / "model-settings.json").write_text(json.dumps(settings))


def mlserver(folder: Path, version: str) -> MLServer:
    """Return an MLServer with version 1 of the model."""
    folder.mkdir()
    server = MLServer(peers.environment("mlserver"), folder)
    server.write("another", OLD)
    mlserver_version(folder, OLD, version)
    return server


async def swaps_and_goes_back(
    client: Client, put_second: Callable[[], object], back: Callable[[], Awaitable[object]]
) -> Crowd:
    """Swap to version 2 and roll back while clients ask; return what they saw."""
    async with Crowd(client) as crowd:
        await asyncio.to_thread(put_second)
        assert await swapped(client) == ""
        await crowd.more()
        new = whose(await client.infer(sent()))
        await back()
        await crowd.more()
        old = whose(await client.infer(sent()))
    assert (new, old) == (("2", "2"), ("1", "1"))
    assert crowd.errors == []
    assert crowd.seen == {("1", "1"), ("2", "2")}
    return crowd


@pytest.mark.parametrize("check", ["local", "upstream"])
async def test_triton_serves_the_guards_own_repository_and_a_swap_loses_no_request(
    tmp_path: Path, check: str
) -> None:
    repository = tmp_path / "models"
    calibrated(repository, 1)
    triton = triton_on(repository, tmp_path / "triton", ALL)

    def second() -> None:
        (calibrated(repository, 2) / "model.py").write_text(MODEL)

    own = SAME | {"upstream_check": check}
    async with running(triton), in_front_of(triton, repository, own=own, **PATIENT) as client:
        crowd = await swaps_and_goes_back(client, second, lambda: client.server.control.rollback("tiny"))

    assert {answer.model_version for answer in crowd.answers} == {"1", "2"}


async def test_triton_that_keeps_the_latest_version_only_is_told_what_to_write(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    calibrated(repository, 1)
    triton = triton_on(repository, tmp_path / "triton", "")
    async with running(triton), in_front_of(triton, repository, own=SAME, **PATIENT) as client:
        calibrated(repository, 2)
        why = await swapped(client)

    assert "keeps the latest 1 of a model's versions" in why


async def test_triton_exchanges_the_latest_version_in_place(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    calibrated(repository, 1)
    triton = triton_on(repository, tmp_path / "triton", "")
    second = repository / "tiny" / "2"

    async def back() -> None:
        (second / "model.py").unlink()
        second.rename(tmp_path / "2")
        await client.server.control.rollback("tiny")

    def put_second() -> None:
        (calibrated(repository, 2) / "model.py").write_text(MODEL)

    async with running(triton), in_front_of(triton, repository, own=LOADS, **PATIENT) as client:
        await swaps_and_goes_back(client, put_second, back)


async def test_triton_that_cannot_load_a_version_goes_on_with_the_one_it_has(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    calibrated(repository, 1)
    triton = triton_on(repository, tmp_path / "triton", ALL)
    async with (
        running(triton),
        in_front_of(triton, repository, own=SAME, **PATIENT) as client,
        Crowd(client) as crowd,
    ):
        (calibrated(repository, 2) / "model.py").write_text("not python at all")
        why = await swapped(client)
        await crowd.more()

    assert crowd.errors == []
    assert crowd.seen == {("1", "1")}
    assert f"model server {triton.address} (model 'tiny') does not load version '2', and says " in why
    assert why.endswith("version '1' serves on")


async def test_mlserver_has_versions_side_by_side_and_a_swap_loses_no_request(tmp_path: Path) -> None:
    repository, folder = tmp_path / "models", tmp_path / "mlserver"
    calibrated(repository, 1)
    server = mlserver(folder, "1")

    def second() -> None:
        calibrated(repository, 2)
        mlserver_version(folder, NEW, "2")

    async with running(server), in_front_of(server, repository, own=SAME, **PATIENT) as client:
        crowd = await swaps_and_goes_back(client, second, lambda: client.server.control.rollback("tiny"))

    assert {answer.model_version for answer in crowd.answers} == {"1", "2"}


async def test_mlserver_with_one_version_exchanges_it_in_place(tmp_path: Path) -> None:
    repository, folder = tmp_path / "models", tmp_path / "mlserver"
    calibrated(repository, 1)
    server = mlserver(folder, "")

    def second() -> None:
        calibrated(repository, 2)
        mlserver_version(folder, NEW, "")

    async def back() -> None:
        mlserver_version(folder, OLD, "")
        await client.server.control.rollback("tiny")

    async with running(server), in_front_of(server, repository, own=LOADS, **PATIENT) as client:
        await swaps_and_goes_back(client, second, back)


async def test_kserve_can_load_nothing_and_keeps_its_model(tmp_path: Path) -> None:
    repository, folder = tmp_path / "models", tmp_path / "kserve"
    calibrated(repository, 1)
    folder.mkdir()
    server = KServe(peers.environment("kserve"), folder)
    server.write("tiny", OLD)
    async with running(server), in_front_of(server, repository, own=LOADS, **PATIENT) as client:
        calibrated(repository, 2)
        why = await swapped(client)
        answer = whose(await client.infer(sent()))

    assert f"model server {server.address} (model 'tiny') does not load version '2', and says" in why
    assert "load it by the server's own means first; version '1' serves on" in why
    assert answer == ("1", "1")


@pytest.mark.parametrize("kind", ["triton", "mlserver"])
async def test_two_guards_in_front_of_one_server_may_swap_at_the_same_time(tmp_path: Path, kind: str) -> None:
    repository = tmp_path / "models"
    calibrated(repository, 1)
    server: PeerProcess = (
        triton_on(repository, tmp_path / "triton", ALL)
        if kind == "triton"
        else mlserver(tmp_path / "mlserver", "1")
    )
    async with (
        running(server),
        in_front_of(server, repository, own=SAME, **PATIENT) as one,
        in_front_of(server, repository, own=SAME, **PATIENT) as other,
        Crowd(one) as crowd,
        Crowd(other) as others,
    ):
        second = calibrated(repository, 2)
        if kind == "triton":
            (second / "model.py").write_text(MODEL)
        else:
            mlserver_version(tmp_path / "mlserver", NEW, "2")
        assert await asyncio.gather(swapped(one), swapped(other)) == ["", ""]
        await crowd.more()
        await others.more()

    assert crowd.errors + others.errors == []
    assert crowd.seen == others.seen == {("1", "1"), ("2", "2")}
