"""Keeps all models: starts them, changes their versions when asked, and closes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np

from guard.control.api import Agreement, ModelStatus, SwapReport, at_once
from guard.control.model_keeper import ModelKeeper
from guard.control.served_versions import ModelRecord
from guard.control.start import start_model
from guard.control.tools import Tools
from guard.control.watcher import TakeOver, take_over, watch
from guard.dataplane.served import OnUncheckable, ServedModel
from guard.dataplane.share import Share
from guard.detection.threshold import Policy
from guard.errors import SettingsError, UnknownModelError
from guard.runtime.slot import ModelSlot

__all__ = ["Keeper"]


class Keeper:
    """The operations behind :class:`~guard.control.api.Control`, but for the canary's.

    Args:
        repository: Where the models are.
        tools: What to work with.

    Attributes:
        models: What is served, by name; it grows as models are started.
    """

    def __init__(self, repository: Path, tools: Tools) -> None:
        self.models: dict[str, ServedModel] = {}
        self._repository = repository
        self._tools = tools
        self._keepers: dict[str, ModelKeeper] = {}
        self._records: dict[str, ModelRecord] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(
        self, name: str, policy: Policy, on_uncheckable: OnUncheckable, sampling: float = 1.0
    ) -> None:
        """Load a model of the repository and serve it: what served last, or the next best version.

        Args:
            name: Its directory in the repository.
            policy: What is done with suspicious inputs.
            on_uncheckable: What is done with inputs that cannot be checked.
            sampling: Share of the requests that are checked.

        Raises:
            ArtifactError: If no version of it can be served.
            SettingsError: If the device asked for is not there.
        """
        record = (await self._read_records(name)).get(name)
        directory = self._repository / name
        started = await start_model(name, directory, record, self._tools)
        served = ServedModel(ModelSlot(started.model), policy, on_uncheckable)
        if sampling < 1.0:
            served.sampling = Share(sampling, np.random.default_rng())
        keeper = ModelKeeper(directory, served, started, self._tools)
        self.models[name], self._keepers[name] = served, keeper
        self._tools.announcer.loaded(started.model, served)
        if record is None:
            await keeper.write_record("start")

    def watch(self, interval_s: float, takes_over: TakeOver = take_over) -> None:
        """Look for higher versions every ``interval_s`` seconds from now on, and have them served."""
        watched = list(self._keepers.values())
        self._watching = asyncio.create_task(watch(watched, interval_s, takes_over))

    @property
    def records(self) -> dict[str, ModelRecord]:
        """What serves and what served, by model."""
        return {name: keeper.record for name, keeper in self._keepers.items()}

    async def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what is known of one model, or of all; soon, even where the repository's disk hangs."""
        keepers = [self.keeper_of(model)] if model else self._keepers.values()
        return tuple(await asyncio.gather(*(keeper.status() for keeper in keepers)))

    async def swap(
        self,
        model: str,
        version: str = "",
        *,
        digest: str = "",
        actor: str = "",
        agreement: Agreement = at_once,
    ) -> SwapReport:
        """Serve a version, the highest one if none is named; only with the given digest, if one is given."""
        return await self.keeper_of(model).swap(version, digest=digest, actor=actor, agreement=agreement)

    async def rollback(self, model: str, *, actor: str = "", agreement: Agreement = at_once) -> SwapReport:
        """Serve the version that was served before."""
        return await self.keeper_of(model).rollback(actor=actor, agreement=agreement)

    def keeper_of(self, model: str) -> ModelKeeper:
        """Return the keeper of one model.

        Raises:
            UnknownModelError: If it is not served.
        """
        if model not in self._keepers:
            raise UnknownModelError(f"model {model!r} is not served here; loaded: {sorted(self._keepers)}")
        return self._keepers[model]

    def begin_shutdown(self) -> None:
        """Let no operation begin, and none that runs change what serves."""
        for keeper in self._keepers.values():
            keeper.begin_shutdown()

    async def close(self, time_left_s: Callable[[], float]) -> None:
        """Wait for operations that run, finish what was accepted, and close all models.

        Args:
            time_left_s: Seconds that accepted requests still have; a candidate that is just being loaded is
                waited for regardless.
        """
        self.begin_shutdown()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        for keeper in self._keepers.values():
            await keeper.finish()
            slot = keeper.served.slot
            for model in slot.held:
                await asyncio.to_thread(model.scheduler.close, time_left_s())
            await slot.close(drain_timeout_s=time_left_s())

    async def _read_records(self, model: str) -> dict[str, ModelRecord]:
        if self._records is None:
            try:
                self._records = await asyncio.to_thread(self._tools.versions.read)
            except SettingsError as error:
                self._records = {}
                self._tools.announcer.record_failed(model, actor="start", error=str(error))
        return self._records
