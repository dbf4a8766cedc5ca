"""What runs in a worker process: a whole guard, which does as its parent says and does not outlive it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import threading
from typing import Final

from guard.errors import GuardError
from guard.logs import configure_logging
from guard.server import GuardServer
from guard.settings import Settings
from guard.workers.lifeline import FAILED, READY, Lifeline
from guard.workers.place import WorkerPlace
from guard.workers.seat import Seat

__all__ = ["main"]

_log = logging.getLogger(__name__)

_EXIT_ERROR: Final = 2
_GRACE_S: Final = 5.0


def main() -> int:
    """Read the order and serve until SIGTERM, or until the parent is gone; return the exit code."""
    lifeline = Lifeline.of_this_process()
    order = lifeline.order()
    settings = Settings(**order.settings)
    configure_logging(settings.log_level, settings.log_format, worker=order.seat.name)
    try:
        asyncio.run(_serve(settings, order.seat, lifeline))
    except (GuardError, OSError) as error:
        lifeline.say(FAILED, error=str(error))
        return _EXIT_ERROR
    return 0


async def _serve(settings: Settings, seat: Seat, lifeline: Lifeline) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)

    def parent_gone() -> None:
        _log.error("the parent of this worker is gone; it finishes what it accepted and ends")
        last_moment = threading.Timer(settings.drain_timeout_s + _GRACE_S, os._exit, (_EXIT_ERROR,))
        last_moment.daemon = True  # or one that has ended in time would wait for it
        last_moment.start()
        shutil.rmtree(seat.folder, ignore_errors=True)  # nobody else is left to do so
        loop.call_soon_threadsafe(stopping.set)

    lifeline.on_loss(parent_gone)
    server = GuardServer(settings, WorkerPlace(seat, lifeline))
    await server.start()
    records = {name: record.model_dump(mode="json") for name, record in server.records.items()}
    lifeline.say(READY, models=list(records), records=records)
    await stopping.wait()
    await server.stop()


if __name__ == "__main__":
    sys.exit(main())
