"""Says which version of one model serves: one operation at a time, none of them ever left half done."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from guard.control.announcer import Event
from guard.control.api import Agreement, ModelStatus, SwapReport, at_once
from guard.control.candidate import load_candidate, require_there, state_of, versions_in
from guard.control.failures import Failures
from guard.control.listing import Listing
from guard.control.model_servers import ServerSide
from guard.control.served_versions import ModelRecord, ServedVersion
from guard.control.start import Started
from guard.control.tools import Tools
from guard.control.untried import Untried
from guard.control.version_info import version_info
from guard.dataplane.served import ServedModel
from guard.errors import BusyError, CandidateError, ShuttingDownError
from guard.runtime.loader import LoadedModel

__all__ = ["ModelKeeper"]

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class ModelKeeper:
    """Keeps one model.

    Args:
        directory: ``<repository>/<model>``.
        served: Its slot, and what the operator decided about it.
        started: How it came to serve.
        tools: What to work with.

    Attributes:
        record: What serves and what served.
        failures: Versions that did not come to serve, and have not since.
    """

    def __init__(self, directory: Path, served: ServedModel, started: Started, tools: Tools) -> None:
        self.name = directory.name
        self.record: ModelRecord = started.record
        self.failures = Failures(started.failures)
        self.served = served
        self._directory = directory
        self._listing = Listing(directory)
        self._untried = Untried(directory, started.failed)
        self._tools = tools
        self._server_side = ServerSide(served, tools.model_servers, tools.announcer)
        self._operation: asyncio.Task[Any] | None = None
        self._closing = False

    async def status(self) -> ModelStatus:
        """Return what is known of the model, but for what is being tried."""
        listed = await self._listing.look()
        current = self.served.slot.current
        return ModelStatus(
            name=self.name,
            policy=self.served.policy.value,
            current=None if current is None else version_info(current),
            previous=tuple(past.version for past in self.record.history),
            available=listed.versions,
            canary=None,
            failures=self.failures.of(listed),
            note=listed.note,
            doing=self._server_side.doing,
        )

    async def exclusively(self, operation: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Run an operation to its end, even if whoever asked for it is gone before.

        Raises:
            BusyError: If another one runs.
            ShuttingDownError: If the server is stopping.
        """
        if self._closing:
            raise self._unloading()
        if self._operation is not None:
            raise BusyError(
                f"another operation on model {self.name!r} is under way; look at `guard status` and try again"
            )
        self._operation = asyncio.create_task(operation())
        self._operation.add_done_callback(self._operation_done)
        return await asyncio.shield(self._operation)

    async def swap(
        self, version: str, *, digest: str, actor: str, agreement: Agreement = at_once
    ) -> SwapReport:
        """Serve a version, the highest one if it is empty; see :class:`~guard.control.api.Control`."""
        return await self.exclusively(lambda: self._swap(version, digest, actor, agreement))

    async def rollback(self, *, actor: str, agreement: Agreement = at_once) -> SwapReport:
        """Serve the version that was served before."""
        return await self.exclusively(lambda: self._roll_back(actor, agreement))

    async def load(
        self, version: str, *, digest: str, actor: str, agreement: Agreement = at_once
    ) -> LoadedModel:
        """Load a version beside the one that serves, within an operation; whoever asked has to close it.

        Raises:
            CandidateError: If it cannot come to serve; that is counted and told.
            Exception: What ``agreement`` raises; the version is closed again.
        """
        start = time.monotonic()
        serving = self._serving()
        _log.info(
            "loading a version", extra={"model": self.name, "version": version, "serving": serving.version}
        )
        try:
            candidate = await asyncio.to_thread(self._load, serving, version, digest)
        except CandidateError as error:
            self._failed_to_serve(version, serving, actor, error)
            raise
        await self._or_close(candidate, self._server_side.prepare(candidate, serving, actor), actor)
        self._tools.announcer.candidate_loaded(self.name, time.monotonic() - start)
        try:
            await agreement(version_info(candidate))
        except BaseException as error:
            if isinstance(error, CandidateError) and error.its_own:
                self.distrust(candidate, error.reason)
            await asyncio.to_thread(candidate.close)
            raise
        return candidate

    async def switch(
        self, candidate: LoadedModel, kind: Event, record: ModelRecord, *, actor: str, start: float
    ) -> SwapReport:
        """Serve a candidate from now on, within an operation, and write that down.

        Args:
            candidate: Loaded and ready; closed here if it does not come to serve.
            kind: What this is called.
            record: What is to be written down.
            actor: Who asked.
            start: When, by the monotonic clock, seconds.

        Raises:
            ShuttingDownError: If the server began to stop meanwhile.
            CandidateError: If the model server behind the model does not come to answer as the candidate
                does; that is counted and told.
        """
        try:
            old = await self._or_close(candidate, self._switch(candidate, actor), actor)
        except CandidateError:  # a watcher would have requests held up for it again and again
            self._untried.failed(candidate.version, candidate.digest)
            raise
        report = self._report(old, candidate, start)
        self.record = record
        self.failures.forget(candidate.version)
        self._tools.announcer.switched(kind, old, candidate, self.served, actor, report.seconds)
        note = await self.write_record(actor)
        return replace(report, note="; ".join(filter(None, (report.note, note))))

    async def write_record(self, actor: str) -> str:
        """Write down what serves; where that fails it is told, and why is returned."""
        try:
            await asyncio.to_thread(self._tools.versions.write, self.name, self.record)
        except OSError as error:
            note = (
                f"version {self.record.current.version!r} of model {self.name!r} serves, but that could not "
                f"be written down ({error}), so that a restart may serve another; see to state_dir and swap "
                f"again"
            )
            self._tools.announcer.record_failed(self.name, actor=actor, error=note)
            return note
        return ""

    def require_no_candidate(self) -> None:
        """Refuse to change what serves under a candidate that is being compared with it.

        Raises:
            BusyError: If there is one.
        """
        candidate = self.served.slot.candidate
        if candidate is not None:
            raise BusyError(
                f"version {candidate.version!r} of model {self.name!r} is tried on a share of the requests; "
                f"`guard promote` it or `guard canary stop` it first"
            )

    def distrust(self, candidate: LoadedModel, why: str = "") -> None:
        """Have a watcher take a version over no more, which was tried; ``why`` if it failed."""
        self._untried.failed(candidate.version, candidate.digest)
        if why:
            self.failures.add(candidate.version, why)

    def newer(self) -> str | None:
        """Return the highest version above all that ever served, unless it is known to fail (blocks)."""
        return self._untried.newest(self.record.newest)

    def put_off(self, version: str, looks: int) -> None:
        """Have :meth:`newer` pass a version over so many times."""
        self._untried.put_off(version, looks)

    def begin_shutdown(self) -> None:
        """Let no operation begin, and none that runs change what serves, nor wait for a model server."""
        self._closing = True
        self._server_side.give_up()

    async def finish(self) -> None:
        """Wait for the operation that runs."""
        if self._operation is not None:
            await asyncio.wait([self._operation])

    async def _swap(self, version: str, digest: str, actor: str, agreement: Agreement) -> SwapReport:
        start = time.monotonic()
        self.require_no_candidate()
        wanted = version or (await asyncio.to_thread(versions_in, self._directory) or [""])[-1]
        current = self._serving()
        if wanted == current.version and digest in {"", current.digest}:
            await self._server_side.restore(current, actor)
            return self._report(current, current, start, changed=False)
        candidate = await self.load(wanted, digest=digest, actor=actor, agreement=agreement)
        new = ServedVersion(version=candidate.version, digest=candidate.digest)
        record = self.record.swapped_to(new)
        return await self.switch(candidate, Event.SWAPPED, record, actor=actor, start=start)

    async def _roll_back(self, actor: str, agreement: Agreement) -> SwapReport:
        start = time.monotonic()
        self.require_no_candidate()
        if not self.record.history:
            serving = self._serving().version
            others = [version for version in (await self._listing.look()).versions if version != serving]
            raise CandidateError(
                f"no version of model {self.name!r} was served before {serving!r}; "
                + (f"swap to one of {others}" if others else "there is no other in the repository")
            )
        past = self.record.history[0]
        candidate = await self.load(past.version, digest=past.digest, actor=actor, agreement=agreement)
        record = self.record.rolled_back()
        return await self.switch(candidate, Event.ROLLED_BACK, record, actor=actor, start=start)

    async def _switch(self, candidate: LoadedModel, actor: str) -> LoadedModel:
        async with self._server_side.exchanging(candidate, self._serving(), actor):
            if self._closing:
                raise self._unloading()
            return self.served.slot.swap(candidate, drain_timeout_s=self._tools.drain_timeout_s)

    async def _or_close(
        self, candidate: LoadedModel, step: Coroutine[Any, Any, _Result], actor: str
    ) -> _Result:
        """Take a step on a candidate's way to serve; where it fails the candidate is closed."""
        try:
            return await step
        except BaseException as error:
            if isinstance(error, CandidateError):
                self._failed_to_serve(candidate.version, self._serving(), actor, error)
            await asyncio.to_thread(candidate.close)
            raise

    def _report(
        self, old: LoadedModel, new: LoadedModel, start: float, *, changed: bool = True
    ) -> SwapReport:
        seconds, side = time.monotonic() - start, self._server_side
        told = (version_info(old), version_info(new))
        return SwapReport(self.name, *told, seconds, changed, side.note, side.steps)

    def _failed_to_serve(self, version: str, serving: LoadedModel, actor: str, error: CandidateError) -> None:
        failure = self.failures.add(version, error.reason)
        self._tools.announcer.candidate_failed(
            self.name, version=version, serving=serving.version, actor=actor, error=failure.error
        )

    def _unloading(self) -> ShuttingDownError:
        return ShuttingDownError(f"model {self.name!r} is being unloaded; ask another replica")

    def _load(self, serving: LoadedModel, version: str, digest: str) -> LoadedModel:
        require_there(version, self._directory, serving)
        path = self._directory / version
        state = state_of(path)
        try:
            return load_candidate(
                self._tools.load, serving, path, digest=digest, free_bytes=self._tools.free_bytes
            )
        except CandidateError as error:
            if error.its_own:
                self._untried.failed(version, state)
            raise

    def _serving(self) -> LoadedModel:
        current = self.served.slot.current
        if current is None:
            raise self._unloading()
        return current

    def _operation_done(self, task: asyncio.Task[Any]) -> None:
        self._operation = None
        if not task.cancelled():
            task.exception()  # seen: it was told when it happened, though nobody may wait for it any more
