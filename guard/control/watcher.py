"""Watches the repository for higher versions, and has them served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from guard.control.model_keeper import ModelKeeper
from guard.errors import GuardError

__all__ = ["ACTOR", "look", "watch"]

_log = logging.getLogger(__name__)

ACTOR = "watch"


async def watch(keepers: Iterable[ModelKeeper], interval_s: float) -> None:
    """Look at every model again and again, until cancelled.

    Args:
        keepers: Of the models.
        interval_s: Seconds between looks.
    """
    watched = list(keepers)
    while True:
        await asyncio.sleep(interval_s)
        for keeper in watched:
            await look(keeper)


async def look(keeper: ModelKeeper) -> None:
    """Serve the highest version of a model if it is higher than all that ever served.

    One that fails is told by its keeper and not tried again; one that comes while another operation runs is
    found at the next look.
    """
    try:
        version = await asyncio.to_thread(keeper.newer)
        if version is not None:
            await keeper.swap(version, digest="", actor=ACTOR)
    except GuardError as error:
        _log.debug("a version was not taken over", extra={"model": keeper.name, "why": str(error)})
    except Exception:  # noqa: BLE001 - a repository that cannot be read now may be read later
        _log.exception("model %r cannot be watched just now", keeper.name)
