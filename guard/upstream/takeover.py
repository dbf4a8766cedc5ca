"""Has a model server serve the version that is to check from now on, so that model and boundary never part.

Theory of operation. Side by side (``upstream_version = "same"``) the server has each version under its
number: the new one is loaded there, asked the images stored at calibration, and nothing else happens to what
serves; requests that began with the old one are still answered by it. In place the server has one model, and
either may answer while it is exchanged. So requests are held, those under way finish, checks included, and
only then is the model exchanged; the answers say which one is there now, and requests are let in under that
one. If it is neither, or nobody can say, none is let in: fail closed.

::

    side by side   load ─► ready? ─► answers as calibrated? ─────────────────────────► switch
    in place       hold ─► drain ─► load ─► ready? ─► answers as calibrated? ─► switch ─► let in
                                     └─ failed, or others: is it the old one? ─ yes ─► let in
                                                                └─ no ─► not ready, looked at again and again
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

from guard.errors import GuardError, UpstreamDeadlineError, UpstreamError, UpstreamStatusError
from guard.runtime.loader import LoadedModel
from guard.upstream.follower import Follower
from guard.upstream.link import Link
from guard.upstream.repository_client import RepositoryClient, require_kept
from guard.upstream.turnstile import Turnstile

__all__ = ["Step", "Takeover"]

Step = Callable[[str], AbstractContextManager[None]]
"""Told what is being done, for as long as that takes."""

_LOOK_S = 0.01


@dataclass(frozen=True)
class Takeover:
    """What it takes to have one model server serve another version.

    Attributes:
        link: To the server.
        follower: Knows what it answers.
        turnstile: Lets requests through to it.
        loader: Has it load versions; None where the guard is not to do that.
        drain_s: Longest wait for the requests under way, where they have to finish first.
    """

    link: Link
    follower: Follower
    turnstile: Turnstile
    loader: RepositoryClient | None
    drain_s: float

    async def prepare(self, candidate: LoadedModel, serving: LoadedModel, step: Step) -> str:
        """Have a candidate served beside what serves, or see that what is there is the candidate.

        Returns:
            What an operator should know besides; empty if there is nothing.

        Raises:
            GuardError: If that cannot be done; what serves is not touched.
        """
        async with self._in_our_words():
            if self.link.address.same:
                return await self._beside(candidate, serving, step)
            if not self._exchanges(candidate, serving) and self.follower.ready:
                await self._agree(candidate, step)
            return ""

    @asynccontextmanager
    async def exchanging(
        self, candidate: LoadedModel, serving: LoadedModel, step: Step
    ) -> AsyncIterator[None]:
        """Have a candidate served in place of what serves, if there is no other way; the block is the switch.

        Raises:
            GuardError: If that cannot be done. What is so then, the follower says.
        """
        async with self._in_our_words():
            if not self._exchanges(candidate, serving):
                yield
                self.follower.taken_over()
                return
            self.turnstile.closed, loaded = True, False
            try:
                with step(f"requests are held, and those under way at {self.link.address} finish"):
                    await self._drain(serving)
                self.follower.pause(f"version {candidate.version!r} is being loaded there")
                await self._load(candidate, step)
                loaded = True
                yield
            except asyncio.CancelledError:
                self.follower.resume("it was being given another model when the guard was told to stop")
                raise
            finally:
                self.turnstile.closed = False
                await self._settle(candidate, serving, loaded=loaded)

    def _exchanges(self, candidate: LoadedModel, serving: LoadedModel) -> bool:
        if self.link.address.same or self.loader is None:
            return False
        return candidate.profile.model_sha256 != serving.profile.model_sha256 or not self.follower.ready

    @asynccontextmanager
    async def _in_our_words(self) -> AsyncIterator[None]:
        """Say whose words they are, where the server says no, and note where it cannot be reached."""
        try:
            yield
        except UpstreamStatusError as error:
            raise UpstreamError(f"{self.link.address} says {error.code}: {error}") from error
        except UpstreamError as error:
            if not self.link.connected:
                self.follower.lost(str(error))
            raise
        finally:
            await self.follower.tell()

    async def _beside(self, candidate: LoadedModel, serving: LoadedModel, step: Step) -> str:
        try:
            with step(f"{self.link.address} is asked whether it has version {candidate.version!r}"):
                await self.follower.get_to_know(candidate)
        except GuardError as error:
            if not self.link.connected:
                raise
            if self.loader is None:
                raise UpstreamError(
                    f"{_words(error)}; have version {candidate.version!r} loaded there and swap again, or "
                    f'let the guard do that: upstream_load = "swap"'
                ) from error
            require_kept(self.follower.config, serving.version, candidate.version, self.link.address)
            await self._load(candidate, step)
            return "" if candidate is serving else await self._look_after(serving, step)
        finally:
            if candidate is serving:
                await self.follower.look()
        return ""

    async def _load(self, candidate: LoadedModel, step: Step) -> None:
        """Have the server load a version, and compare it."""
        assert self.loader is not None
        with step(f"{self.link.address} loads version {candidate.version!r}"):
            await self.loader.load(candidate)
        with step("its answers are compared with those at calibration"):
            await self.follower.get_to_know(candidate)

    async def _agree(self, candidate: LoadedModel, step: Step) -> None:
        try:
            with step(f"the answers of {self.link.address} are compared with those at calibration"):
                await self.follower.get_to_know(candidate)
        except GuardError as error:
            raise UpstreamError(
                f"{_words(error)}; exchange the model there and swap then, or let the guard do that: "
                f'upstream_load = "swap"'
            ) from error

    async def _look_after(self, serving: LoadedModel, step: Step) -> str:
        """Return what became of the version that served until now; a load may have taken it away."""
        try:
            with step(f"version {serving.version!r} is compared again, for requests that began with it"):
                await self.follower.get_to_know(serving)
        except GuardError as error:
            self.follower.forget(serving)
            return (
                f"version {serving.version!r} is not what it was there any more ({error}); requests that "
                f"began with it may have been refused, and a rollback needs it there again"
            )
        return ""

    async def _drain(self, serving: LoadedModel) -> None:
        """Wait for requests under way, and for checks that go on after the answer (``monitor``)."""
        try:
            async with asyncio.timeout(self.drain_s):
                await self.turnstile.empty()
                while serving.scheduler.rows:  # noqa: ASYNC110 - it is a thread's, which tells nobody
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise UpstreamDeadlineError(
                f"requests under way at {self.link.address} did not finish within {self.drain_s:.3f} s, so "
                f"nothing was loaded there; swap when there are fewer, or allow more time (drain_timeout_s)"
            ) from None

    async def _settle(self, candidate: LoadedModel, serving: LoadedModel, *, loaded: bool) -> None:
        """Say what the server has after a model was loaded in place, or was to be."""
        if loaded and self.follower.current() is candidate:
            self.follower.resume()
        elif self.loader is not None and self.loader.pending is not None:
            pause = self.follower.pause(
                f"it is not known whether it still loads version {candidate.version!r}; restart it if that "
                f"does not end"
            )
            self.loader.pending.add_done_callback(
                lambda _: self.follower.resume("it is being looked at", of=pause)
            )
        elif self.follower.paused:
            self.follower.resume(
                f"it is not known whether it has version {serving.version!r} or {candidate.version!r}"
            )
            await self.follower.look()


def _words(error: GuardError) -> str:
    return f"it says {error.code}: {error}" if isinstance(error, UpstreamStatusError) else str(error)
