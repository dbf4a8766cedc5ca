"""How an admin call ends: with a status, a count, and a record of who asked for what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from guard.errors import QueueFullError
from guard.rpc.access import AdminContext, OnEvent, actor_of, ignore_event
from guard.rpc.outcome import OnRpc, answering, ignore_rpc

__all__ = ["CALL", "Reception"]

CALL: Final = "admin_call"
"""Kind of the event that a call ended: method, model, actor, code, and what else was asked for."""

_MAX_CHARACTERS: Final = 200
_MAX_CALLS: Final = 16


class Reception:
    """Lets calls in and out, so many at a time; who asks has shown that they may.

    Args:
        on_rpc: Called once for each finished call, with the model as it was asked for.
        on_event: Told of each finished call, see :data:`CALL`.
        max_calls: Calls that may be answered at a time; what comes beyond is refused.
    """

    def __init__(
        self, *, on_rpc: OnRpc = ignore_rpc, on_event: OnEvent = ignore_event, max_calls: int = _MAX_CALLS
    ) -> None:
        self._on_rpc = on_rpc
        self._on_event = on_event
        self._max_calls = max_calls
        self._running = 0

    @asynccontextmanager
    async def call(
        self, context: AdminContext, method: str, model: str = "", **asked: str | float
    ) -> AsyncIterator[str]:
        """Run a method's body, which gets who asks; errors become statuses.

        Args:
            context: The call's.
            method: Its bare name.
            model: The model that it names, if any.
            asked: What else was asked for.
        """
        actor = actor_of(context)

        def ended(method: str, model: str, code: str, seconds: float) -> None:
            self._on_rpc(method, model, code, seconds)
            fields = {"method": method, "model": model, "actor": actor, "code": code, **asked}
            self._on_event(CALL, {name: _bounded(value) for name, value in fields.items()})

        async with answering(context, method, ended, model):
            with self._place():
                yield actor

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._running >= self._max_calls:
            raise QueueFullError(
                f"{self._running} admin calls are being answered, expected at most {self._max_calls}; "
                f"try again when one of them has ended"
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def _bounded(value: str | float) -> str | float:
    """Return what a caller wrote, as far as anybody needs it."""
    if isinstance(value, str) and len(value) > _MAX_CHARACTERS:
        return value[:_MAX_CHARACTERS] + "…"
    return value
