"""A keeper over a repository of tiny models, everything in it real but the ports."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from guard.artifact import Artifact
from guard.control.announcer import Announcer
from guard.control.counts import SwapCounts
from guard.control.keeper import Keeper
from guard.control.model_keeper import ModelKeeper
from guard.control.served_versions import ServedVersions
from guard.control.tools import Tools
from guard.detection.threshold import Policy
from guard.metrics import Metrics
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model

PATIENCE_S = 60.0
ON_CPU = RuntimeOptions(device="cpu", threads=1, max_batch_pairs=16)


@dataclass
class Gate:
    """Holds loading until the test lets it go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def load(self, name: str, directory: Path, approve: Callable[[Artifact], None]) -> LoadedModel:
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        return load(name, directory, approve)


@dataclass
class House:
    """What a test looks at."""

    keeper: Keeper
    registry: CollectorRegistry
    events: list[tuple[str, dict[str, Any]]]
    repository: Path

    @property
    def tiny(self) -> ModelKeeper:
        return self.keeper.keeper_of("tiny")

    @property
    def serving(self) -> str:
        current = self.tiny.served.slot.current
        return current.version if current else ""

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def counted(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, {"model": "tiny", **labels})
        assert value is not None
        return value


def load(name: str, directory: Path, approve: Callable[[Artifact], None]) -> LoadedModel:
    return load_model(name, directory, ON_CPU, approve=approve)


@asynccontextmanager
async def keeping(
    repository: Path,
    *,
    state_dir: Path | None = None,
    load: Callable[..., LoadedModel] = load,
    on_event: Callable[[str, Any], None] | None = None,
    **tools: Any,
) -> AsyncIterator[House]:
    """Keep the model ``tiny`` of a repository for the length of a ``with`` block."""
    registry, events = CollectorRegistry(), []
    take_note = on_event or (lambda kind, fields: events.append((kind, dict(fields))))
    announcer = Announcer(Metrics(registry), SwapCounts(registry), take_note)
    shared = Tools(load, announcer, ServedVersions(state_dir), PATIENCE_S, **tools)
    keeper = Keeper(repository, shared)
    try:
        await keeper.start("tiny", Policy.FLAG, "refuse")
        yield House(keeper, registry, events, repository)
    finally:
        await keeper.close(partial(float, PATIENCE_S))
