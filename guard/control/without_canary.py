"""The control room of a guard that tries no candidates: it swaps, and rolls back."""

from __future__ import annotations

from typing import NoReturn

from guard.control.api import CanaryStatus, ModelStatus, SwapReport
from guard.control.keeper import Keeper
from guard.errors import UnsupportedRequestError

__all__ = ["WithoutCanary"]


class WithoutCanary:
    """What :class:`~guard.control.api.Control` asks for; a canary is refused, with what to do instead.

    Args:
        keeper: Does the rest.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what is known of one model, or of all."""
        return self._keeper.status(model)

    async def swap(self, model: str, version: str = "", *, digest: str = "", actor: str = "") -> SwapReport:
        """Serve a version, the highest one if none is named; only with the given digest, if one is given."""
        return await self._keeper.swap(model, version, digest=digest, actor=actor)

    async def rollback(self, model: str, *, actor: str = "") -> SwapReport:
        """Serve the version that was served before."""
        return await self._keeper.rollback(model, actor=actor)

    async def start_canary(self, model: str, version: str, *, share: float, actor: str = "") -> CanaryStatus:
        """Refuse."""
        self._refuse(model)

    async def promote(self, model: str, *, actor: str = "") -> SwapReport:
        """Refuse."""
        self._refuse(model)

    async def stop_canary(self, model: str, *, actor: str = "") -> CanaryStatus:
        """Refuse."""
        self._refuse(model)

    def _refuse(self, model: str) -> NoReturn:
        self._keeper.keeper_of(model)  # an unknown model is told first
        raise UnsupportedRequestError(
            f"model {model!r}: this guard tries no candidates on a share of the requests; swap to the "
            f"version, and roll back if it does not do"
        )
