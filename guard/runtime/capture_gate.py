"""Who may use the GPU while a CUDA graph is captured: nobody else.

ONNX Runtime captures in CUDA's global mode: while one thread captures, a call by any other thread of the
process that might wait or allocate (a copy, a load, another model's batch) fails, and takes the capture with
it. So everything that is done with CUDA here holds the gate with others, and a capture holds it alone. A
capture never waits for its turn: where somebody is at the GPU, that batch runs without one, and a later batch
captures. So a model that loads for a minute holds up no batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["GPU", "CaptureGate"]


class CaptureGate:
    """Held by many at a time, or by one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the gate with others; waits while one holds it alone, which is for a few device calls."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1

    @contextmanager
    def alone_if_free(self) -> Iterator[bool]:
        """Hold the gate alone if nobody holds it, else with others; yields whether it is held alone."""
        with self._changed:
            alone = not self._taken and self._holders == 0
            if alone:
                self._taken = True
        if not alone:
            with self.shared():
                yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


GPU: Final = CaptureGate()
"""The one of this process; CUDA's rule is for all of its devices and models."""
