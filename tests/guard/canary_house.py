"""A keeper, its control room and the data plane over a repository of tiny models, for tests of canaries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from control_house import PATIENCE_S, keeping
from control_house import House as Kept
from control_house import load as load_on_cpu

from guard.artifact import Artifact
from guard.control.canary_counts import CanaryCounts
from guard.control.canary_tally import CanaryLimits
from guard.control.control_room import ControlRoom
from guard.dataplane import DataPlane
from guard.detection.threshold import Policy
from guard.messages import InferRequest, InferResponse, Tensor
from guard.metrics import Metrics
from guard.runtime.loader import LoadedModel
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.serving import with_device
from tests.tiny_models import linear_classifier

LIMITS = CanaryLimits(min_rows=20)
IMAGES = random_images(make_profile(linear_classifier()), 16, seed=3)
DARK = np.zeros_like(IMAGES[:1])
"""An image on which ``tiny_models.nan_in_the_dark`` gives NaN."""


class Failing:
    """A device that fails on everything."""

    def check(self, *arguments: Any) -> Any:
        raise RuntimeError("out of memory")


@dataclass
class Clock:
    """A time that only :class:`Taking` moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Taking:
    """A device whose every call takes some time of a clock."""

    inner: Any
    clock: Clock
    seconds: float

    def check(self, *arguments: Any) -> Any:
        answer = self.inner.check(*arguments)
        self.clock.now += self.seconds
        return answer


@dataclass
class House:
    """What a test looks at."""

    kept: Kept
    room: ControlRoom
    plane: DataPlane
    loads: list[LoadedModel] = field(default_factory=list)

    @property
    def slot(self) -> Any:
        return self.kept.tiny.served.slot

    @property
    def canary(self) -> Any:
        return self.room._canary_of("tiny")

    @property
    def figures(self) -> dict[str, float]:
        return dict(self.canary.figures)

    async def infer(self, images: np.ndarray = IMAGES[:1], version: str = "") -> InferResponse:
        request = InferRequest("tiny", (Tensor("images", "FP32", images),), version)
        async with asyncio.timeout(PATIENCE_S):
            return await self.plane.infer(request)

    async def versions(self, requests: int, images: np.ndarray = IMAGES[:1]) -> list[str]:
        """Send requests one by one; return who answered them."""
        return [(await self.infer(images)).model_version for _ in range(requests)]

    async def until(self, seen: Callable[[], bool]) -> None:
        """Wait for what happens in the background."""
        async with asyncio.timeout(PATIENCE_S):
            while not seen():  # noqa: ASYNC110 - of all there is to wait for, nothing tells
                await asyncio.sleep(0)

    async def compared(self) -> None:
        """Wait until every answer of the candidate was compared or given up."""

        def all_of_it() -> bool:
            figures = self.figures
            done = figures["compared"] + figures["shadow_dropped"] == figures["answered"]
            return done or not self.canary.running

        await self.until(all_of_it)

    async def infer_until_ended(self, most: int, images: np.ndarray = IMAGES) -> list[InferResponse]:
        """Send requests until the canary has ended."""
        answers = []
        for _ in range(most):
            answers.append(await self.infer(images))
            await self.compared()
            if not self.canary.running:
                return answers
        raise AssertionError(f"still running: {self.canary}")

    def count(self, name: str, **labels: str) -> float:
        return self.kept.counted(name, **labels)


@asynccontextmanager
async def trying(
    root: Path,
    *,
    policy: str = "flag",
    devices: Callable[[LoadedModel], Any] = lambda _model: None,
    limits: CanaryLimits = LIMITS,
    clock: Callable[[], float] | None = None,
    request_timeout_s: float = PATIENCE_S,
    state_dir: Path | None = None,
    candidates: Sequence[dict[str, Any]] = ({},),
) -> AsyncIterator[House]:
    """Serve version 1 of ``tiny``, with candidates beside it in the repository.

    Args:
        devices: The device that a loaded model is put on; None for its own.
        candidates: Options of ``write_tiny_artifact`` for version 2, 3 …
    """
    repository, loads = root / "models", []

    def load(name: str, directory: Path, approve: Callable[[Artifact], None]) -> LoadedModel:
        model = load_on_cpu(name, directory, approve)
        device = devices(model)
        loads.append(model if device is None else with_device(model, device))
        return loads[-1]

    if not repository.exists():
        write_tiny_artifact(repository, boundary_bits=0.0)
    async with keeping(repository, load=load, state_dir=state_dir) as kept:
        for options in candidates:
            write_tiny_artifact(repository, **{"boundary_bits": 0.0, **options})
        kept.tiny.served.policy = Policy(policy)
        counts = CanaryCounts(kept.registry)
        counts.add_model("tiny")
        room = ControlRoom(kept.keeper, kept.keeper._tools, limits, counts, np.random.default_rng(0))
        metrics: Metrics = kept.keeper._tools.announcer._metrics
        plane = DataPlane(
            kept.keeper.models,
            metrics,
            max_request_rows=16,
            request_timeout_s=request_timeout_s,
            **({} if clock is None else {"clock": clock}),
        )
        yield House(kept, room, plane, loads)
