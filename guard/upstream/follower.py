"""Whether a model server may be asked, found out by asking it again and again.

::

    away ──ModelReady, and it answers as calibrated──► ready ──┐ asked every interval_s
      ▲                                                  ▲     │
      └── it is not ready, the connection broke, ────────┴─────┘
          another version answered
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from guard.errors import GuardError, UpstreamError, UpstreamStatusError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.upstream.acquaintance import check_answers, check_metadata
from guard.upstream.link import Link
from guard.upstream.predictor import Predictor

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

_ASK_S: Final = 5.0
_IMPATIENT_S: Final = 0.2  # between looks while it is away, so that it comes back soon


class Follower:
    """Follows one model server.

    Args:
        link: To the server.
        predictor_of: Returns what asks it for the predictions of a model.
        interval_s: Seconds between looks.
        on_change: Told whenever readiness changes.

    Attributes:
        metadata: What the server says of its model; None until it was ready once, or where it says nothing.
        config: Its configuration; None where it has none.
        version: The version that answered as calibrated; empty where the server does not say.
        why: Why it is not ready; empty while it is.
    """

    def __init__(
        self,
        link: Link,
        predictor_of: Callable[[LoadedModel], Predictor],
        *,
        interval_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.metadata: pb.ModelMetadataResponse | None = None
        self.config: pb.ModelConfig | None = None
        self.version = ""
        self.why = "it has not been asked yet"
        self._link = link
        self._predictor_of = predictor_of
        self._interval_s = interval_s
        self._on_change = on_change
        self._known: weakref.WeakSet[LoadedModel] = weakref.WeakSet()
        self._absences = 0
        self._breaks = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()

    @property
    def ready(self) -> bool:
        """Whether the server is ready, and answers as calibrated."""
        return not self.why

    def knows(self, model: LoadedModel) -> bool:
        """Whether the server is ready, and answers as this model did when it was calibrated."""
        return self.ready and self._breaks == self._link.breaks and model in self._known

    async def follow(self, current: Callable[[], LoadedModel | None]) -> None:
        """Look again and again, until cancelled.

        Args:
            current: Returns the model that checks what the server is asked; None while there is none.
        """
        while True:
            self._wake.clear()
            await self.look(current())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s if self.ready else self._pause_s()):
                    await self._wake.wait()

    async def look(self, model: LoadedModel | None) -> None:
        """Look once; whatever is wrong is told, and is no error."""
        if model is None:
            return
        try:
            absences = self._absences
            await self._examine(model)
            if absences == self._absences:
                self._now("")
        except UpstreamStatusError as error:
            self._now(f"{self._link.address} says {error.code} of its model: {error}")
        except GuardError as error:
            self._now(str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever a server says must not end the looking
            _log.exception("%s could not be asked", self._link.address)
            self._now(f"{type(error).__name__}, see the log")
        async with self._changed:
            self._changed.notify_all()

    async def until_known(self, model: LoadedModel) -> None:
        """Wait until the server is ready, and answers as this model did; have it looked at now."""
        self._wake.set()
        async with self._changed:
            await self._changed.wait_for(lambda: self.knows(model))

    async def get_to_know(self, model: LoadedModel) -> None:
        """Compare the server's answers with those of a model that is to check what it is asked.

        Raises:
            GuardError: If they differ, or the server cannot be asked.
        """
        absences = self._absences
        if self.metadata is not None:
            check_metadata(self.metadata, model.profile, self._link.address)
        version = await check_answers(self._predictor_of(model), model, self._link.address)
        if absences == self._absences:
            self.version = version
            self._known.add(model)

    def lost(self, why: str) -> None:
        """Take note that the connection broke: whatever comes back has to be looked at anew."""
        self._absences += 1
        self._known.clear()
        self._now(why)
        self._wake.set()

    def require_ready(self) -> None:
        """Refuse to ask a server that is not ready.

        Raises:
            UpstreamError: Saying why it is not.
        """
        if self.why:
            raise UpstreamError(f"{self._link.address} is not ready: {self.why}; retry")

    def expect(self, version: str) -> None:
        """Refuse the answer of another version than the one that is known.

        Raises:
            UpstreamError: If it is another.
        """
        if version and self.version and version != self.version:
            known = self.version
            self.lost(f"it answers in version {version!r}, {known!r} was compared with the calibrated model")
            raise UpstreamError(
                f"{self._link.address} answered in version {version!r}, where {known!r} was compared with "
                f"the calibrated model; it is being looked at, retry"
            )

    async def _examine(self, model: LoadedModel) -> None:
        """Ask whether the server is ready and, where it may be another model than before, who it is."""
        address = self._link.address
        named = {"name": address.model, "version": address.version}
        if not (await self._link.ask("ModelReady", pb.ModelReadyRequest(**named), _ASK_S)).ready:
            raise UpstreamError(f"{address} says that it is not ready")
        breaks = self._link.breaks
        metadata = await self._if_served("ModelMetadata", pb.ModelMetadataRequest(**named))
        if metadata != self.metadata or not self.knows(model):
            self._known.clear()
            self.metadata = metadata
            config = await self._if_served("ModelConfig", pb.ModelConfigRequest(**named))
            self.config = None if config is None else config.config
            await self.get_to_know(model)
            self._breaks = breaks

    async def _if_served(self, method: str, request: object) -> Any:
        try:
            return await self._link.ask(method, request, _ASK_S)
        except UpstreamStatusError as error:
            if error.code == "UNIMPLEMENTED":
                return None
            raise

    def _now(self, why: str) -> None:
        before, self.why = self.why, why
        if bool(before) == bool(why) and before != "it has not been asked yet":
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
