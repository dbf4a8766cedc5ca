"""A worker's end of the two pipes between it and its parent.

What it has to say goes out as lines of JSON. Nothing but the order comes in, and the end of that pipe means
that the parent is gone, however it went: a worker that nobody keeps must not go on serving.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import RawIOBase
from typing import BinaryIO, Final

from guard.control.announcer import Event
from guard.control.served_versions import ModelRecord
from guard.workers.seat import Order

__all__ = ["CANARY_ENDED", "FAILED", "NEWER", "READY", "RECORD", "Lifeline"]

READY: Final = "ready"
"""It serves: ``models``, and the ``records`` of what."""

FAILED: Final = "failed"
"""It cannot start: ``error`` in words."""

RECORD: Final = "record"
"""What serves as ``model`` has changed: its ``record``."""

CANARY_ENDED: Final = "canary_ended"
"""The candidate of ``model`` exceeded a limit here: ``why``."""

NEWER: Final = "newer"
"""There is a ``version`` of ``model`` above all that ever served."""


class Lifeline:
    """Speaks to the parent, and notices its end.

    Args:
        orders: Where the order comes from, and nothing after it.
        words: Where lines go.
    """

    def __init__(self, orders: RawIOBase, words: BinaryIO) -> None:
        self._orders = orders
        self._words = words
        self._lock = threading.Lock()

    @classmethod
    def of_this_process(cls) -> Lifeline:
        """Take standard input and output; what is printed from now on goes to standard error."""
        words = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        orders = os.fdopen(
            os.dup(sys.stdin.fileno()), "rb", buffering=0
        )  # a thread waits in it to the very end
        return cls(orders, words)

    def order(self) -> Order:
        """Return what the parent wants (blocks)."""
        return Order.model_validate_json(self._orders.readline())

    def say(self, kind: str, **fields: object) -> None:
        """Send a line; whether anybody hears it is not known."""
        line = json.dumps({"kind": kind, **fields}, default=str).encode() + b"\n"
        with self._lock, suppress(OSError, ValueError):
            self._words.write(line)
            self._words.flush()

    def record(self, model: str, record: ModelRecord) -> None:
        """Say what serves as a model since now."""
        self.say(RECORD, model=model, record=record.model_dump(mode="json"))

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Say it if something happened that concerns all."""
        if kind == Event.CANARY_ROLLED_BACK.value:
            self.say(CANARY_ENDED, model=fields["model"], why=fields["why"])

    def on_loss(self, act: Callable[[], None]) -> None:
        """Have a thread call ``act`` once the parent is gone."""

        def wait() -> None:
            with suppress(OSError, ValueError):
                while self._orders.read(4096):
                    pass
            act()

        threading.Thread(target=wait, name="lifeline", daemon=True).start()
