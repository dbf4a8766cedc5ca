"""What a change of version asks of the model server behind a model, and what is told of it step by step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Protocol, runtime_checkable

from guard.control.announcer import Announcer
from guard.control.api import Step
from guard.dataplane.served import ServedModel
from guard.errors import CandidateError, GuardError, ShuttingDownError
from guard.runtime.loader import LoadedModel

__all__ = ["ModelServers", "NoModelServers", "ServerSide"]

OnStep = Callable[[str], AbstractContextManager[None]]
"""Told what is being done, for as long as that takes."""


@runtime_checkable
class ModelServers(Protocol):
    """The model servers that answer in place of local models; called on the event loop.

    Both raise :class:`~guard.errors.GuardError` where it cannot be done, and do nothing for a model that has
    no server.
    """

    async def prepare(self, candidate: LoadedModel, serving: LoadedModel, step: OnStep) -> str:
        """Have a candidate served beside the version that serves, where the server can do that.

        Returns:
            What an operator should know besides; empty if there is nothing.
        """
        ...

    def exchanging(
        self, candidate: LoadedModel, serving: LoadedModel, step: OnStep
    ) -> AbstractAsyncContextManager[None]:
        """Have a candidate served in place of the version that serves, if there is no other way.

        The block is the switch; no request is let through to the server before it.
        """
        ...


class NoModelServers:
    """Where every model is run here."""

    async def prepare(self, candidate: LoadedModel, serving: LoadedModel, step: OnStep) -> str:
        """Do nothing."""
        return ""

    @asynccontextmanager
    async def exchanging(
        self, candidate: LoadedModel, serving: LoadedModel, step: OnStep
    ) -> AsyncIterator[None]:
        """Do nothing."""
        yield


class ServerSide:
    """The side of an operation on one model that is its model server's.

    Args:
        served: The model.
        servers: What answers for models.
        announcer: Told each step.

    Attributes:
        doing: What is being done there just now; empty if nothing.
        steps: What was done there for the latest candidate.
        note: What is to be known besides; empty if there is nothing.
    """

    def __init__(self, served: ServedModel, servers: ModelServers, announcer: Announcer) -> None:
        self.doing = ""
        self.steps: tuple[Step, ...] = ()
        self.note = ""
        self._served = served
        self._servers = servers
        self._announcer = announcer
        self._waiting: asyncio.Task[object] | None = None

    async def prepare(self, candidate: LoadedModel, serving: LoadedModel, actor: str) -> None:
        """Have a candidate served beside what serves, where that can be.

        Raises:
            CandidateError: If it does not come to that.
            ShuttingDownError: If :meth:`give_up` was called meanwhile.
        """
        self.steps, self.note = (), ""
        with self._told(candidate, serving):
            self.note = await self._servers.prepare(candidate, serving, self._step(candidate, actor))

    @asynccontextmanager
    async def exchanging(
        self, candidate: LoadedModel, serving: LoadedModel, actor: str
    ) -> AsyncIterator[None]:
        """Have it served in place of what serves, where that has to be; the block is the switch.

        Raises:
            CandidateError, ShuttingDownError: As :meth:`prepare`.
        """
        with self._told(candidate, serving):
            async with self._servers.exchanging(candidate, serving, self._step(candidate, actor)):
                self._waiting = None
                yield

    async def restore(self, current: LoadedModel, actor: str) -> None:
        """Have the version that serves here served there again, where the server is not ready for it.

        Raises:
            CandidateError, ShuttingDownError: As :meth:`prepare`.
        """
        self.steps, self.note = (), ""
        if not self._served.ready:
            await self.prepare(current, current, actor)
            async with self.exchanging(current, current, actor):
                pass

    def give_up(self) -> None:
        """Wait for the server no more."""
        if self._waiting is not None:
            self._waiting.cancel()

    @contextmanager
    def _told(self, candidate: LoadedModel, serving: LoadedModel) -> Iterator[None]:
        self._waiting = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            raise ShuttingDownError(
                f"model {serving.name!r} is being unloaded; ask another replica"
            ) from None
        except ShuttingDownError:
            raise
        except GuardError as error:
            now = self._what_is_so_now(serving)
            raise CandidateError(
                f"version {candidate.version!r} of model {serving.name!r} cannot come to serve: {error}; "
                f"{now}",
                reason=str(error) if self._served.ready else f"{error}; {now}",
            ) from error
        finally:
            self._waiting = None

    def _step(self, candidate: LoadedModel, actor: str) -> OnStep:
        @contextmanager
        def step(words: str) -> Iterator[None]:
            began, why, self.doing = time.monotonic(), "", words
            try:
                yield
            except BaseException as error:
                why = str(error) or type(error).__name__
                raise
            finally:
                done, self.doing = Step(words, time.monotonic() - began), ""
                self.steps += (done,)
                self._announcer.upstream_step(candidate, done, actor=actor, error=why)

        return step

    def _what_is_so_now(self, serving: LoadedModel) -> str:
        if self._served.ready:
            return f"version {serving.version!r} serves on"
        return (
            f"the model server is not ready for version {serving.version!r} either, which checks on, so "
            f"requests are refused until it answers as that one or a swap succeeds"
        )
