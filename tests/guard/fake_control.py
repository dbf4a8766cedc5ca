"""A control room in memory: versions come and go as on a server, and it notes who asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from guard.control.api import CanaryStatus, Failure, ModelStatus, SwapReport, VersionInfo
from guard.errors import BusyError, CandidateError, UnknownModelError


def version_info(version: str, certified_frr: float | None = 0.01) -> VersionInfo:
    """Return what might be known of a version."""
    number = int(version)
    return VersionInfo(
        version, f"{number:064x}", f"{number + 16:064x}", 0.25 + number, certified_frr, 1.7e9 + number
    )


class FakeControl:
    """Serves ``tiny``: versions 1 to 3, the first at the start; version 3 is unfit.

    With ``error`` set every operation raises that; with ``hold`` set operations wait for it.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Event()
        self.asked: list[tuple[str, ...]] = []
        self.tiny = ModelStatus(
            name="tiny",
            policy="enforce",
            current=version_info("1"),
            previous=(),
            available=("1", "2", "3"),
            canary=None,
            failures=(),
        )

    async def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        if self.error is not None:
            raise self.error
        self._find(model or "tiny")
        return (self.tiny,)

    async def swap(self, model: str, version: str = "", *, digest: str = "", actor: str = "") -> SwapReport:
        await self._begin("swap", model, version, digest, actor)
        wanted = version or self.tiny.available[-1]
        if wanted == "3":
            self.tiny = replace(self.tiny, failures=(Failure("3", 1.7e9, "the model gives no numbers"),))
            raise CandidateError("version '3' of model 'tiny' gives no numbers; '1' serves on")
        if digest and digest != version_info(wanted).digest:
            raise CandidateError(
                f"version {wanted!r} of model 'tiny' has another digest; look which is meant"
            )
        return self._switch(wanted)

    async def rollback(self, model: str, *, actor: str = "") -> SwapReport:
        await self._begin("rollback", model, actor)
        if not self.tiny.previous:
            raise CandidateError("model 'tiny' has served no version before '1'; swap to one instead")
        return self._switch(self.tiny.previous[0])

    async def start_canary(self, model: str, version: str, *, share: float, actor: str = "") -> CanaryStatus:
        await self._begin("start_canary", model, version, f"{share:g}", actor)
        canary = CanaryStatus(version_info(version, None), share, 1.7e9, True, "", {"requests": 12.0})
        self.tiny = replace(self.tiny, canary=canary)
        return canary

    async def promote(self, model: str, *, actor: str = "") -> SwapReport:
        await self._begin("promote", model, actor)
        if self.tiny.canary is None:
            raise CandidateError("model 'tiny' has no canary; start one")
        return self._switch(self._end("promoted").candidate.version)

    async def stop_canary(self, model: str, *, actor: str = "") -> CanaryStatus:
        await self._begin("stop_canary", model, actor)
        return self._end("stopped")

    async def _begin(self, *asked: str) -> None:
        if self.hold is not None and self.held.is_set():
            raise BusyError(f"another operation on model {asked[1]!r} is under way; wait for its end")
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        self._find(asked[1])
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
            self.hold = None

    def _find(self, model: str) -> None:
        if model != "tiny":
            raise UnknownModelError(f"model {model!r} is not served here; served: ['tiny']")

    def _switch(self, version: str) -> SwapReport:
        old, new = self.tiny.current, version_info(version)
        assert old is not None
        if old.version != version:
            self.tiny = replace(self.tiny, current=new, previous=(old.version, *self.tiny.previous))
        return SwapReport("tiny", old, new, 0.5, old.version != version)

    def _end(self, outcome: str) -> CanaryStatus:
        if self.tiny.canary is None:
            raise CandidateError("model 'tiny' has no canary; start one")
        canary = replace(self.tiny.canary, running=False, outcome=outcome)
        self.tiny = replace(self.tiny, canary=canary)
        return canary
