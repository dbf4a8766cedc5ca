"""All that an operator may ask: what the keeper does, and candidates tried on a share of the requests."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

import numpy as np

from guard.control.announcer import Event
from guard.control.api import Agreement, CanaryStatus, ModelStatus, SwapReport, at_once
from guard.control.canary import Canary
from guard.control.canary_counts import CanaryCounts
from guard.control.canary_tally import Breach, CanaryLimits, CanaryTally
from guard.control.keeper import Keeper
from guard.control.model_keeper import ModelKeeper
from guard.control.served_versions import ServedVersion
from guard.control.tools import Tools
from guard.control.version_info import version_info
from guard.dataplane.share import Share
from guard.dataplane.trial import Trial
from guard.errors import CandidateError, OperationError, ShuttingDownError
from guard.metrics_catalogue import CanaryOutcome
from guard.runtime.loader import LoadedModel

__all__ = ["ControlRoom"]


class ControlRoom:
    """The operations behind :class:`~guard.control.api.Control`.

    Where several processes serve the same models, each change waits for an agreement that all can make it:
    it is asked for when this one could, and nothing is changed before.

    Args:
        keeper: Keeps the models.
        tools: What it works with.
        limits: What candidates may do.
        counts: Told what they do.
        generator: Draws the requests that candidates answer; None for one that nobody can guess.
    """

    def __init__(
        self,
        keeper: Keeper,
        tools: Tools,
        limits: CanaryLimits,
        counts: CanaryCounts,
        generator: np.random.Generator | None = None,
    ) -> None:
        self._keeper = keeper
        self._tools = tools
        self._limits = limits
        self._counts = counts
        self._generator = generator or np.random.default_rng()
        self._canaries: dict[str, Canary] = {}

    async def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what is known of one model, or of all; soon, even where the repository's disk hangs."""
        statuses = await self._keeper.status(model)
        return tuple(replace(status, canary=self._canary_of(status.name)) for status in statuses)

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
        return await self._keeper.swap(model, version, digest=digest, actor=actor, agreement=agreement)

    async def rollback(self, model: str, *, actor: str = "", agreement: Agreement = at_once) -> SwapReport:
        """Serve the version that was served before."""
        return await self._keeper.rollback(model, actor=actor, agreement=agreement)

    async def start_canary(
        self, model: str, version: str, *, share: float, actor: str = "", agreement: Agreement = at_once
    ) -> CanaryStatus:
        """Let a candidate answer a share of the requests, and watch it.

        Raises:
            ValueError: If the share is not above 0 and at most 1.
        """
        keeper = self._keeper.keeper_of(model)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share: expected a number above 0 and at most 1, got {share:g}")
        picked = Share(share, self._generator)
        return await keeper.exclusively(
            partial(self._start, keeper, version, picked, share, actor, agreement)
        )

    async def promote(self, model: str, *, actor: str = "", agreement: Agreement = at_once) -> SwapReport:
        """Serve the candidate that is being tried: one switch, nothing is loaded again."""
        keeper = self._keeper.keeper_of(model)
        return await keeper.exclusively(partial(self._promote, keeper, actor, agreement))

    async def stop_canary(self, model: str, *, actor: str = "") -> CanaryStatus:
        """Take the candidate off the traffic; requests that it began with it finishes."""
        keeper = self._keeper.keeper_of(model)
        return await keeper.exclusively(partial(self._stop, keeper, actor))

    async def _start(
        self,
        keeper: ModelKeeper,
        version: str,
        picked: Share,
        share: float,
        actor: str,
        agreement: Agreement,
    ) -> CanaryStatus:
        keeper.require_no_candidate()
        if keeper.served.upstream is not None:
            raise CandidateError(
                f"model {keeper.name!r} is answered by a model server, so a candidate would answer nothing; "
                f"swap to version {version!r}, which has to agree with that server's answers"
            )
        serving = keeper.served.slot.current
        if serving is not None and serving.version == version:
            raise CandidateError(
                f"version {version!r} of model {keeper.name!r} serves already, expected another one to try"
            )
        candidate = await keeper.load(version, digest="", actor=actor, agreement=agreement)
        try:
            keeper.served.slot.admit(candidate)
        except ShuttingDownError:
            await asyncio.to_thread(candidate.close)
            raise
        canary = self._watch(keeper, candidate, share)
        keeper.served.trial = Trial(keeper.served.slot, picked, canary)
        self._counts.started(keeper.name, share)
        self._tools.announcer.canary(Event.CANARY_STARTED, keeper.name, candidate, actor=actor, share=share)
        return canary.status()

    def _watch(self, keeper: ModelKeeper, candidate: LoadedModel, share: float) -> Canary:
        boundary = candidate.profile.promise
        frr = boundary.frr if boundary.certified_frr is None else boundary.certified_frr
        canary = Canary(
            keeper.name,
            version_info(candidate),
            share,
            CanaryTally(self._limits, frr),
            self._counts,
            partial(self._roll_back, keeper, candidate),
        )
        self._canaries[keeper.name] = canary
        return canary

    async def _promote(self, keeper: ModelKeeper, actor: str, agreement: Agreement) -> SwapReport:
        start = time.monotonic()
        await agreement(version_info(self._require_candidate(keeper)))
        candidate = self._require_candidate(keeper)  # a limit may have been exceeded meanwhile
        self._end(keeper, CanaryOutcome.PROMOTED, CanaryOutcome.PROMOTED.value)
        record = keeper.record.swapped_to(ServedVersion(version=candidate.version, digest=candidate.digest))
        return await keeper.switch(candidate, Event.PROMOTED, record, actor=actor, start=start)

    async def _stop(self, keeper: ModelKeeper, actor: str) -> CanaryStatus:
        candidate = self._require_candidate(keeper)
        status = self._take_off(keeper, candidate, CanaryOutcome.STOPPED, CanaryOutcome.STOPPED.value)
        self._tools.announcer.canary(
            Event.CANARY_STOPPED, keeper.name, candidate, actor=actor, figures=dict(status.figures)
        )
        return status

    def _roll_back(self, keeper: ModelKeeper, candidate: LoadedModel, breach: Breach) -> None:
        """Take a candidate off the traffic that exceeded a limit."""
        outcome = f"rolled back for {breach.outcome.value}: {breach.why}"
        status = self._take_off(keeper, candidate, breach.outcome, outcome)
        keeper.distrust(candidate, outcome)
        self._tools.announcer.canary(
            Event.CANARY_ROLLED_BACK,
            keeper.name,
            candidate,
            actor="canary",
            outcome=breach.outcome.value,
            why=breach.why,
            figures=dict(status.figures),
        )

    def _take_off(
        self, keeper: ModelKeeper, candidate: LoadedModel, outcome: CanaryOutcome, words: str
    ) -> CanaryStatus:
        self._end(keeper, outcome, words)
        keeper.served.slot.dismiss(drain_timeout_s=self._tools.drain_timeout_s)
        keeper.distrust(candidate)
        return self._canaries[keeper.name].status()

    def _end(self, keeper: ModelKeeper, outcome: CanaryOutcome, words: str) -> None:
        trial, keeper.served.trial = keeper.served.trial, None
        if trial is not None:
            trial.end()
        self._canaries[keeper.name].end(words)
        self._counts.ended(keeper.name, outcome)

    def _require_candidate(self, keeper: ModelKeeper) -> LoadedModel:
        candidate = keeper.served.slot.candidate
        if candidate is None:
            raise OperationError(
                f"model {keeper.name!r} has no candidate that is tried; `guard canary start` starts one"
            )
        return candidate

    def _canary_of(self, model: str) -> CanaryStatus | None:
        canary = self._canaries.get(model)
        return canary.status() if canary else None
