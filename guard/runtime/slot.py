"""The one place where a served model is replaced.

Theory of operation. A slot holds the current model and counts, for every model it has held, the
leases out on it. A request leases the current model once and uses that one to its end. A swap
changes which model is current in one assignment and waits for nothing, so each request sees exactly
one version, and nobody can give up in the middle of it. What is left to do with the old model is a
task of its own: wait for its last lease to be returned, at most drain_timeout_s, and close it. Whoever
wants to see the end of that waits in ``drained`` or ``close``. Everything here runs on the event loop,
so no lock is needed.

::

    lease ──► current v1 ─────────────────────► returned ─► (v1 retired, 0 leases) ─► close v1
    swap(v2): current = v2, done
          └─► task: wait for v1's leases, at most drain_timeout_s ─► close v1, in a thread

A candidate that is tried before it takes over is admitted beside the current model and leased by name.
A swap to it is the same one assignment, its leases go on; a dismissal retires it as a swap does the old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar, runtime_checkable

from guard.errors import ShuttingDownError

__all__ = ["Closable", "ModelSlot"]

_log = logging.getLogger(__name__)


@runtime_checkable
class Closable(Protocol):
    """What a slot needs of a model."""

    def close(self) -> None:
        """Finish what was accepted and let go of the device; may block."""
        ...


Model = TypeVar("Model", bound=Closable)


class ModelSlot(Generic[Model]):
    """Holds the current version of one model."""

    def __init__(self, model: Model) -> None:
        self._current: Model | None = model
        self._candidate: Model | None = None
        self._leases: dict[Model, int] = {model: 0}
        self._returned = asyncio.Event()
        self._retirements: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> Model | None:
        """The model that new requests get; None once the slot is closed."""
        return self._current

    @property
    def candidate(self) -> Model | None:
        """The model that was admitted beside the current one; None if there is none."""
        return self._candidate

    @contextmanager
    def lease(self, *, candidate: bool = False) -> Iterator[Model]:
        """Hold the current model, or the candidate, open for the length of a ``with`` block.

        Raises:
            ShuttingDownError: If the slot is closed, or has no candidate.
        """
        model = self._candidate if candidate else self._current
        if model is None:
            raise ShuttingDownError("the model is being unloaded; retry on another replica")
        self._leases[model] += 1
        try:
            yield model
        finally:
            if model in self._leases:  # else it was closed at the end of drain_timeout_s
                self._leases[model] -= 1
            self._returned.set()

    @property
    def held(self) -> tuple[Model, ...]:
        """Every model that is not closed yet, in the order in which they came."""
        return tuple(self._leases)

    def admit(self, candidate: Model) -> None:
        """Hold a candidate beside the current model, for those who lease it by name.

        Raises:
            ShuttingDownError: If the slot is closed.
            ValueError: If the slot holds ``candidate`` already, or has another one.
        """
        if self._current is None:
            raise ShuttingDownError("the model is being unloaded; load it again before trying another")
        if self._candidate is not None or candidate in self._leases:
            raise ValueError("expected a first candidate, got a second one or a model held; dismiss it first")
        self._leases[candidate] = 0
        self._candidate = candidate

    def dismiss(self, *, drain_timeout_s: float) -> None:
        """Lease the candidate to nobody any more; it is drained and closed from then on."""
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            self._retire(candidate, drain_timeout_s)

    def swap(self, candidate: Model, *, drain_timeout_s: float) -> Model:
        """Make ``candidate`` current and return the old model, which is drained and closed from then on.

        Args:
            candidate: A warmed-up model: a new one, or the one that was admitted.
            drain_timeout_s: Longest wait for the old model's running requests; it is closed then
                anyway, which finishes what its scheduler had accepted.

        Raises:
            ShuttingDownError: If the slot is closed.
            ValueError: If the slot holds ``candidate`` already, and not as its candidate.
        """
        old = self._current
        if old is None:
            raise ShuttingDownError("the model is being unloaded; load it again instead of swapping it")
        if candidate is self._candidate:
            self._candidate = None
        elif candidate in self._leases:
            raise ValueError("expected a model that this slot does not hold, got one it does; load it anew")
        else:
            self._leases[candidate] = 0
        self._current = candidate
        self._retire(old, drain_timeout_s)
        return old

    async def drained(self) -> None:
        """Wait until every model that was swapped out is closed."""
        if self._retirements:
            await asyncio.wait(self._retirements)

    async def close(self, *, drain_timeout_s: float) -> None:
        """Refuse new leases, wait for those that are out, and close every model still held."""
        old, self._current = self._current, None
        self.dismiss(drain_timeout_s=drain_timeout_s)
        if old is not None:
            self._retire(old, drain_timeout_s)
        await self.drained()

    def _retire(self, model: Model, drain_timeout_s: float) -> None:
        retirement = asyncio.create_task(self._drain_and_close(model, drain_timeout_s))
        self._retirements.add(retirement)
        retirement.add_done_callback(self._retirements.discard)

    async def _drain_and_close(self, model: Model, drain_timeout_s: float) -> None:
        try:
            async with asyncio.timeout(drain_timeout_s):
                while self._leases[model]:
                    self._returned.clear()
                    await self._returned.wait()
        except TimeoutError:
            pass
        try:
            await asyncio.to_thread(model.close)
        except Exception:  # noqa: BLE001 - nobody waits for it, so that it would stay unseen
            _log.exception("a model that was swapped out could not be closed")
        finally:
            del self._leases[model]
