"""Whether a model server may be asked, found out by asking it again and again.

::

    away ──ModelReady, and it answers as calibrated──► ready ──┐ asked every interval_s
      ▲                                                  ▲     │
      ├── it is not ready, the connection broke, ────────┴─────┘
      │   another version answered
      └── paused: it is being given another model
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from guard.errors import GuardError, UpstreamError, UpstreamStatusError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.upstream.acquaintance import Acquaintance, config_of, get_acquainted, metadata_of, require_ready
from guard.upstream.forms import EncodedInput
from guard.upstream.link import Link
from guard.upstream.predictor import Predictor

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

_IMPATIENT_S: Final = 0.2  # between looks while it is away, so that it comes back soon
_NOT_YET: Final = "it has not been asked yet"


class Follower:
    """Follows one model server.

    Args:
        link: To the server.
        predictor_of: Returns what asks it for the predictions of a model.
        interval_s: Seconds between looks.
        on_change: Told whenever readiness changes.

    Attributes:
        current: Returns the model that checks what the server is asked; None while there is none.
        encoded: The server's input, where that takes encoded images; None where it takes tensors.
        config: The server's configuration of its model; None until it was asked, or where it has none.
        why: Why it is not ready; empty while it is.
        paused: Whether it is not looked at just now.
    """

    def __init__(
        self,
        link: Link,
        predictor_of: Callable[[LoadedModel], Predictor],
        *,
        interval_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.current: Callable[[], LoadedModel | None] = lambda: None
        self.encoded: EncodedInput | None = None
        self.config: pb.ModelConfig | None = None
        self.why = _NOT_YET
        self._link = link
        self._predictor_of = predictor_of
        self._interval_s = interval_s
        self._on_change = on_change
        self._known: weakref.WeakKeyDictionary[LoadedModel, Acquaintance] = weakref.WeakKeyDictionary()
        self._last: Acquaintance | None = None
        self.paused = False
        self._absences = 0
        self._breaks = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()

    @property
    def ready(self) -> bool:
        """Whether the server is ready, and answers as calibrated."""
        return not self.why

    @property
    def metadata(self) -> pb.ModelMetadataResponse | None:
        """What the server says of its model; None until it was ready once, or where it says nothing."""
        return self._said.metadata if self._said else None

    @property
    def version(self) -> str:
        """The version that answers as calibrated; empty where the server does not say."""
        current = self.current()
        if self._link.address.same:
            return current.version if current else ""
        return self._said.version if self._said else ""

    def knows(self, model: LoadedModel) -> bool:
        """Whether the server is ready, and answers as this model did when it was calibrated."""
        return self.ready and self._breaks == self._link.breaks and model in self._known

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self._wake.clear()
            await self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s if self.ready else self._pause_s()):
                    await self._wake.wait()

    async def look(self) -> None:
        """Look once; whatever is wrong is told, and is no error."""
        model = self.current()
        if model is None or self.paused:
            return
        absences, why = self._absences, ""
        try:
            await self._examine(model)
        except UpstreamStatusError as error:
            why = f"{self._link.address} says {error.code} of its model: {error}"
        except GuardError as error:
            why = str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001 - whatever a server says must not end the looking
            _log.exception("%s could not be asked", self._link.address)
            why = f"{type(error).__name__}, see the log"
        if model is not self.current():
            self._wake.set()  # another version took over meanwhile, and nothing was found out about that
        elif absences == self._absences:
            self._now(why)
        await self.tell()

    async def until(self, settled: Callable[[], bool]) -> None:
        """Wait until something is so that a look, or a version taking over, can bring about; look now."""
        self._wake.set()
        async with self._changed:
            await self._changed.wait_for(settled)

    async def tell(self) -> None:
        """Have those who wait look whether it is so."""
        async with self._changed:
            self._changed.notify_all()

    async def get_to_know(self, model: LoadedModel) -> None:
        """Compare the server's answers with those of a model that is to check what it is asked.

        Raises:
            GuardError: If they differ, or the server cannot be asked.
        """
        absences = self._absences
        await require_ready(self._link, model)
        await self._get_to_know(model, await metadata_of(self._link, model), absences)

    def forget(self, model: LoadedModel) -> None:
        """Ask the server nothing more that this model checks, until it was compared again."""
        self._known.pop(model, None)

    def taken_over(self) -> None:
        """Take note that another version checks now, which the server was just compared with.

        It may have been away for want of the version that checked until now.
        """
        model = self.current()
        if not self.paused and model in self._known and self._breaks == self._link.breaks:
            self._now("")
        self._wake.set()

    def pause(self, why: str) -> int:
        """Say that it is not ready, and do not look, until :meth:`resume`; return which pause this is."""
        self.paused = True
        self._anew(why)
        return self._absences

    def resume(self, why: str = "", *, of: int | None = None) -> None:
        """Say what is so now, and look again; nothing if another pause has begun since the one named."""
        if of in {None, self._absences}:
            self.paused = False
            self._now(why)
            self._wake.set()

    def lost(self, why: str) -> None:
        """Take note that the connection broke: whatever comes back has to be looked at anew."""
        if not self.paused:
            self._anew(why)
            self._wake.set()

    def require_ready(self) -> None:
        """Refuse to ask a server that is not ready.

        Raises:
            UpstreamError: Saying why it is not.
        """
        if self.why:
            raise UpstreamError(f"{self._link.address} is not ready: {self.why}; retry")

    def expect(self, version: str, asked: str) -> None:
        """Refuse the answer of another version than the one that is known.

        Args:
            version: That answered; empty where the server does not say.
            asked: That was asked for; empty for whichever the server takes.

        Raises:
            UpstreamError: If it is another.
        """
        same = self._link.address.same
        known = asked if same else self.version
        if version == known or (not same and not (version and known)):
            return
        self.lost(f"it answers in version {version!r}, {known!r} was compared with the calibrated model")
        raise UpstreamError(
            f"{self._link.address} answered in version {version!r}, where {known!r} was compared with "
            f"the calibrated model; it is being looked at, retry"
        )

    async def _examine(self, model: LoadedModel) -> None:
        """Ask whether the server is ready and, where it may be another model than before, who it is."""
        absences = self._absences
        await require_ready(self._link, model)
        breaks = self._link.breaks
        metadata = await metadata_of(self._link, model)
        known = self._known.get(model)
        if known is None or known.metadata != metadata or not self.knows(model):
            if absences != self._absences:
                return
            if breaks != self._breaks or not self._link.address.same:
                self._known.clear()
            self.forget(model)
            await self._get_to_know(model, metadata, absences)
            self._breaks = breaks
        self._last = self._known.get(model, self._last)

    async def _get_to_know(
        self, model: LoadedModel, metadata: pb.ModelMetadataResponse | None, absences: int
    ) -> None:
        self.config = await config_of(self._link, model)  # how many rows it takes, for one
        known = await get_acquainted(self._link, self._predictor_of(model), model, metadata, self.encoded)
        if absences == self._absences:
            self._known[model] = known

    @property
    def _said(self) -> Acquaintance | None:
        current = self.current()
        return self._last if current is None else self._known.get(current, self._last)

    def _anew(self, why: str) -> None:
        self._absences += 1
        self._known.clear()
        self._now(why)

    def _now(self, why: str) -> None:
        before, self.why = self.why, why
        if bool(before) == bool(why) and before != _NOT_YET:
            return
        level = logging.WARNING if why else logging.INFO
        _log.log(
            level,
            "model server is not ready" if why else "model server is ready",
            extra={"model": self._link.address.name, "target": self._link.address.target, "why": why},
        )
        self._on_change()

    def _pause_s(self) -> float:
        return min(self._interval_s, _IMPATIENT_S)
