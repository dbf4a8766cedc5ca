"""Versions change under load: no request fails, none is lost, nothing is left over; a crash does no harm."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from guard.control.served_versions import FILE_NAME
from guard.detection.threshold import Verdict
from guard.errors import ShuttingDownError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.runtime.scheduler import CheckedClassifier
from guard.server import GuardServer
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.e2e.guard_process import Served
from tests.serving import PATIENCE_S, hold_devices, infer_request, serving, settings_for
from tests.tiny_models import linear_classifier, linear_weights

pytestmark = pytest.mark.e2e

CLIENTS, SWAPS, WARM = 8, 200, 40
IMAGES = random_images(make_profile(linear_classifier()), 16, seed=3)
SEEDS = {"1": 0, "2": 1}
VERDICTS = {"1": Verdict.ACCEPT, "2": Verdict.FLAG}
MIB = 2**20


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two versions that differ in weights and in boundary: 1 accepts all, 2 flags all."""
    for seed, boundary_bits in ((0, 0.0), (1, 100.0)):
        write_tiny_artifact(
            tmp_path / "models", model=linear_classifier(seed=seed), boundary_bits=boundary_bits, probed=True
        )
    return tmp_path / "models"


def expected_logits(version: str, images: np.ndarray) -> np.ndarray:
    weight, bias = linear_weights(seed=SEEDS[version])
    logits: np.ndarray = images.reshape(len(images), -1) @ weight + bias
    return logits


def version_answering(answer: pb.ModelInferResponse, images: np.ndarray) -> str:
    """Return the version that an answer names, having seen that it is whole and that version's own."""
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(len(images), 10)
    np.testing.assert_allclose(logits, expected_logits(answer.model_version, images), atol=1e-3)
    assert answer.parameters["guard_verdict"].string_param == VERDICTS[answer.model_version]
    return answer.model_version


@dataclass
class Load:
    """Clients that ask one request after the other."""

    sent: int = 0
    answered: dict[str, int] = field(default_factory=dict)
    stopping: bool = False

    async def ask(self, port: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            while not self.stopping:
                images = IMAGES[generator.choice(len(IMAGES), generator.integers(1, 4))]
                self.sent += 1
                answer = await stub.ModelInfer(infer_request(images), timeout=PATIENCE_S)
                version = version_answering(answer, images)
                self.answered[version] = self.answered.get(version, 0) + 1

    async def until(self, version: str, answers: int) -> None:
        """Wait until a version has given so many answers."""
        async with asyncio.timeout(PATIENCE_S):
            while self.answered.get(version, 0) < answers:  # noqa: ASYNC110 - clients tell nobody
                await asyncio.sleep(0.005)


@asynccontextmanager
async def under_load(port: int) -> AsyncIterator[Load]:
    """Ask from :data:`CLIENTS` clients for the length of a ``with`` block; what fails, fails the test."""
    load = Load()
    async with asyncio.TaskGroup() as group:
        for seed in range(CLIENTS):
            group.create_task(load.ask(port, seed))
        yield load
        load.stopping = True


@dataclass(frozen=True)
class Resources:
    """What the process holds."""

    threads: int
    files: int
    rss_bytes: int

    @classmethod
    def now(cls) -> Resources:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads, files = (len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("task", "fd"))
        return cls(threads, files, pages * 4096)


async def test_two_hundred_swaps_under_load_fail_nobody_and_leave_nothing_behind(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)  # pytest keeps what is logged, which would be all that grows
    async with serving(repository, policy="flag") as client:
        control = client.server.control
        slot = client.server._keeper.models["tiny"].slot
        async with under_load(client.server.port) as load:
            for number in range(SWAPS):
                report = await control.swap("tiny", "12"[number % 2])
                assert report.changed
                if number < 2:
                    await load.until("12"[number % 2], CLIENTS + 1)
                if number == WARM:
                    await slot.drained()
                    before = Resources.now()
            await slot.drained()
            after = Resources.now()
        names = [thread.name for thread in threading.enumerate()]

        assert load.sent == sum(load.answered.values())
        assert min(load.answered[version] for version in "12") > CLIENTS
        assert client.infers_counted() == {("tiny", "OK"): load.sent}
        assert client.counted("guard_swaps_total", "outcome") == {("swapped",): SWAPS}
        assert client.counted("guard_candidate_load_seconds_count") == {(): SWAPS}
        assert client.counted("guard_shed_requests_total", "reason") == {}

    assert names.count("device-tiny") == 1
    swaps_between = SWAPS - WARM - 1
    assert after.threads - before.threads < swaps_between / 10  # asyncio's and gRPC's pools may still fill
    assert after.files - before.files < swaps_between / 10
    assert after.rss_bytes - before.rss_bytes < 32 * MIB


async def test_a_request_ends_on_the_version_it_began_with(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_run: list[threading.Event] = []
    held_back, loop = asyncio.Event(), asyncio.get_running_loop()

    class Held:
        """Runs nothing until the test says so."""

        def __init__(self, classifier: CheckedClassifier) -> None:
            self._classifier = classifier
            self._may_run = threading.Event()
            may_run.append(self._may_run)

        def check(
            self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray]:
            loop.call_soon_threadsafe(held_back.set)
            assert self._may_run.wait(PATIENCE_S)
            return self._classifier.check(images, image_index, overlay_index)

    hold_devices(monkeypatch, Held)
    async with serving(repository, policy="flag") as client:
        began = asyncio.create_task(client.infer(infer_request(IMAGES[:2])))
        await asyncio.wait_for(held_back.wait(), PATIENCE_S)
        report = await client.server.control.swap("tiny", "1")
        may_run[1].set()
        later = await client.infer(infer_request(IMAGES[:2]))
        assert not began.done()
        may_run[0].set()

        assert (report.old.version, report.new.version) == ("2", "1")
        assert version_answering(later, IMAGES[:2]) == "1"
        assert version_answering(await began, IMAGES[:2]) == "2"


async def test_a_rollback_brings_the_old_hash_back(repository: Path) -> None:
    async with serving(repository, policy="flag") as client:
        [before] = client.counted("guard_model_info", "version", "digest")
        await client.server.control.swap("tiny", "1")
        [between] = client.counted("guard_model_info", "version", "digest")
        assert version_answering(await client.infer(infer_request(IMAGES)), IMAGES) == "1"
        await client.server.control.rollback("tiny")
        [after] = client.counted("guard_model_info", "version", "digest")
        assert version_answering(await client.infer(infer_request(IMAGES)), IMAGES) == "2"

    assert after == before
    assert between[1] != before[1]


async def test_a_server_that_stops_in_the_middle_of_a_swap_closes_both_versions(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, may_load = threading.Event(), threading.Event()

    def hold(classifier: CheckedClassifier) -> CheckedClassifier:
        if loading_second:
            loading.set()
            assert may_load.wait(PATIENCE_S)
        return classifier

    loading_second = False
    hold_devices(monkeypatch, hold)
    server = GuardServer(settings_for(repository))
    await server.start()
    loading_second = True
    swap = asyncio.create_task(server.control.swap("tiny", "1"))
    assert await asyncio.to_thread(loading.wait, PATIENCE_S)

    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    may_load.set()

    with pytest.raises(ShuttingDownError):
        await swap
    await stopping
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("device-")] == []


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A repository with version 1, and beside it one with a version 2 that takes long to probe."""
    write_tiny_artifact(tmp_path / "models", boundary_bits=0.0)
    write_tiny_artifact(tmp_path / "next")
    write_tiny_artifact(
        tmp_path / "next", model=linear_classifier(seed=1), boundary_bits=100.0, rounds=(2000,), probed=True
    )
    return tmp_path / "models"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Served]]:
    """The processes that a test started; those that live at its end are killed."""
    processes: list[Served] = []
    yield processes
    for served in processes:
        served.process.end(signal.SIGKILL)


def test_killed_in_the_middle_of_a_swap_it_starts_with_the_last_good_version(
    slow: Path, tmp_path: Path, started: list[Served]
) -> None:
    variables = {
        "GUARD_STATE_DIR": str(tmp_path / "state"),
        "GUARD_WATCH_REPOSITORY_S": "0.01",
        "GUARD_MAX_BATCH_PAIRS": "2",
    }

    def start() -> tuple[Served, str]:
        started.append(Served.start(slow, "--policy", "flag", **variables))
        [loaded] = [record for record in started[-1].process.records if record["message"] == "model loaded"]
        return started[-1], loaded["version"]

    served, version = start()
    assert version == "1"
    (tmp_path / "next" / "tiny" / "2").rename(slow / "tiny" / "2")
    assert served.process.wait_for("loading a version")["version"] == "2"
    assert served.process.end(signal.SIGKILL) == -signal.SIGKILL
    swapped = any(record["message"] == "model swapped" for record in served.process.records)

    served, version = start()
    assert version in ({"1", "2"} if swapped else {"1"})
    if version == "1":
        served.process.wait_for("model swapped")
    assert served.process.end(signal.SIGKILL) == -signal.SIGKILL  # before or after that is written down

    served, version = start()
    assert version in {"1", "2"}
    recorded = json.loads((tmp_path / "state" / FILE_NAME).read_text())["models"]["tiny"]["current"][
        "version"
    ]
    assert recorded in {"1", "2"}
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(infer_request(IMAGES[:1]), timeout=PATIENCE_S)
        assert version_answering(answer, IMAGES[:1]) in {"1", "2"}
    assert served.process.end(signal.SIGTERM) == 0


def test_a_newest_version_that_is_truncated_does_not_keep_it_from_starting(
    repository: Path, started: list[Served]
) -> None:
    model = repository / "tiny" / "2" / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])

    started.append(Served.start(repository, "--policy", "flag"))

    failed, loaded = started[0].process.records[:2]
    assert (failed["level"], failed["message"], failed["version"]) == (
        *("error", "a version cannot be served", "2"),
    )
    assert (loaded["message"], loaded["version"]) == ("model loaded", "1")
    assert started[0].metric("guard_candidate_failures_total") == 1
    assert started[0].process.end(signal.SIGTERM) == 0
