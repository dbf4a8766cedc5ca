"""Watches the repository for higher versions, and has them served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from guard.control.model_keeper import ModelKeeper
from guard.errors import CandidateError, GuardError

__all__ = ["ACTOR", "TakeOver", "look", "take_over", "watch"]

_log = logging.getLogger(__name__)

ACTOR = "watch"

TakeOver = Callable[[ModelKeeper, str], Awaitable[None]]
"""Has a version of a model served, or has somebody told who does that."""

_LOOKS_BEFORE_ANOTHER_TRY: Final = 5


async def take_over(keeper: ModelKeeper, version: str) -> None:
    """Serve a version of a model.

    Raises:
        GuardError: If it does not come to serve.
    """
    try:
        await keeper.swap(version, digest="", actor=ACTOR)
    except CandidateError as error:
        if not error.its_own:
            keeper.put_off(version, _LOOKS_BEFORE_ANOTHER_TRY)
        raise


async def watch(keepers: Iterable[ModelKeeper], interval_s: float, takes_over: TakeOver = take_over) -> None:
    """Look at every model again and again, until cancelled.

    Args:
        keepers: Of the models.
        interval_s: Seconds between looks.
        takes_over: What is done with what is found.
    """
    watched = list(keepers)
    while True:
        await asyncio.sleep(interval_s)
        for keeper in watched:
            await look(keeper, takes_over)


async def look(keeper: ModelKeeper, takes_over: TakeOver = take_over) -> None:
    """Serve the highest version of a model if it is higher than all that ever served.

    One that fails is told by its keeper. It is not tried again if the reason is its own, and some looks later
    if there was only no room for it, so that what is below it has its turn; one that comes while another
    operation runs is found at the next look.
    """
    try:
        version = await asyncio.to_thread(keeper.newer)
        if version is not None:
            await takes_over(keeper, version)
    except GuardError as error:
        _log.debug("a version was not taken over", extra={"model": keeper.name, "why": str(error)})
    except Exception:  # noqa: BLE001 - a repository that cannot be read now may be read later
        _log.exception("model %r cannot be watched just now", keeper.name)
