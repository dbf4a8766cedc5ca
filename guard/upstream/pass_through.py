"""A model that is passed through, as the data plane sees it: nothing is compared, nothing is looked into."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from typing import Any, Final

from guard.errors import GuardError, UnknownModelError, UpstreamError, UpstreamStatusError
from guard.messages import InferRequest, ModelDescription, Relayed, TensorSpec
from guard.rpc.pb import open_inference_pb2 as pb
from guard.upstream.counts import UpstreamCounts, UpstreamPurpose
from guard.upstream.ensembles import ask_if_served, refuse_guarded_parts
from guard.upstream.link import Link
from guard.upstream.server_statistics import statistics_of
from guard.upstream.wire import end_to_end, forwarded

__all__ = ["PassThrough"]

_log = logging.getLogger(__name__)

_ASK_S: Final = 5.0
_IMPATIENT_S: Final = 0.2  # between looks while it is away, so that it comes back soon
_NOT_ASKED: Final = "it has not been asked yet"


class PassThrough:
    """Passes requests on to one model of a server, see :class:`~guard.dataplane.neighbour.Neighbour`.

    It is asked again and again whether it is ready, and what it is made of: an ensemble that a guarded model
    is a part of is not ready as long as it is one. A request is sent once; it is held back, nothing sent,
    while the server is away.

    Args:
        link: To the server.
        counts: Told of requests that were held back.
        guarded: Names of the models there that are guarded.
        interval_s: Seconds between looks.
        wait_s: Longest that a request is held back.
        on_change: Told whenever readiness changes.

    Attributes:
        why: Why it is not ready; empty while it is.
    """

    def __init__(
        self,
        link: Link,
        counts: UpstreamCounts,
        *,
        guarded: Container[str],
        interval_s: float,
        wait_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.why = _NOT_ASKED
        self._link = link
        self._counts = counts
        self._guarded = guarded
        self._interval_s = interval_s
        self._wait_s = wait_s
        self._on_change = on_change
        self._breaks = 0
        self._wake = asyncio.Event()
        self._looked = asyncio.Condition()

    @property
    def ready(self) -> bool:
        """Whether the server takes requests for the model."""
        return not self.why

    @property
    def version(self) -> str:
        """The version that is asked for there; empty where that is left to callers and the server."""
        return self._link.address.version

    async def statistics(self, name: str, version: str) -> Mapping[str, bytes]:
        """Return what the server counted of a version, or of all; empty where it counts nothing.

        Raises:
            UnknownModelError: If another version is to be asked for.
            UpstreamStatusError: If the server says no.
            UpstreamError: If it cannot be asked.
        """
        self._require_version(name, version)
        return await statistics_of(self._link, version or self.version)

    async def version_ready(self, version: str) -> bool:
        """Return whether the server takes requests for a version; empty for whichever it takes."""
        if not self.ready or version not in self._nameable(version):
            return False
        address = self._link.address
        request = pb.ModelReadyRequest(name=address.model, version=version or address.version)
        try:
            return bool((await self._link.ask("ModelReady", request, _ASK_S)).ready)
        except GuardError:
            return False

    async def describe(self, name: str, version: str) -> ModelDescription:
        """Return what the server says of a version, under the name that the model has here.

        Raises:
            UnknownModelError: If another version is to be asked for.
            UpstreamStatusError: If the server says no.
            UpstreamError: If it cannot be asked.
        """
        address = self._link.address
        self._require_version(name, version)
        named = {"name": address.model, "version": version or address.version}
        said = await self._link.ask("ModelMetadata", pb.ModelMetadataRequest(**named), _ASK_S)
        answer = await ask_if_served(self._link, "ModelConfig", pb.ModelConfigRequest(**named))
        return ModelDescription(
            name=name,
            versions=(address.version,) if address.version else tuple(said.versions),
            platform=said.platform,
            backend="",
            max_batch_size=0,  # where it has no configuration, nobody knows of a batch
            inputs=_specs(said.inputs),
            outputs=_specs(said.outputs),
            metadata=said.SerializeToString(),
            config=b"" if answer is None else answer.config.SerializeToString(),
        )

    async def infer(self, request: InferRequest, limit_s: float) -> Relayed:
        """Return the server's answer.

        Raises:
            UnknownModelError: If the request names another version than the one that is to be asked for.
            UpstreamStatusError: If the server says no.
            UpstreamError: If it cannot be asked, or breaks off.
            UpstreamDeadlineError: If it takes too long.
        """
        address = self._link.address
        self._require_version(request.model_name, request.model_version)
        began = asyncio.get_running_loop().time()
        await self._until_ready(limit_s)
        message = forwarded(request, model=address.model, version=address.version)
        metadata = end_to_end(request.original.metadata if request.original else ())
        left_s = limit_s - (asyncio.get_running_loop().time() - began)
        try:
            return await self._link.infer(message, left_s, purpose=UpstreamPurpose.PREDICT, metadata=metadata)
        except UpstreamError as error:
            self._now(str(error))
            self._wake.set()
            raise

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self._wake.clear()
            await self.look()
            pause_s = self._interval_s if self.ready else min(self._interval_s, _IMPATIENT_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def look(self) -> None:
        """Look once; whatever is wrong is told, and is no error."""
        address = self._link.address
        try:
            _ = self._link.connected
            breaks = self._link.breaks
            request = pb.ModelReadyRequest(name=address.model, version=address.version)
            if not (await self._link.ask("ModelReady", request, _ASK_S)).ready:
                raise UpstreamError(f"{address} says that it is not ready")
            await refuse_guarded_parts(self._link, self._guarded)
            self._breaks = breaks
            self._now("")
        except UpstreamStatusError as error:
            self._now(f"{address} says {error.code} of its model: {error}")
        except GuardError as error:
            self._now(str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever a server says must not end the looking
            _log.exception("%s could not be asked", address)
            self._now(f"{type(error).__name__}, see the log")
        async with self._looked:
            self._looked.notify_all()

    def _may_be_asked(self) -> bool:
        """Whether it is ready, and the server is the one that was looked at."""
        return self._link.connected and self.ready and self._breaks == self._link.breaks

    async def _until_ready(self, limit_s: float) -> None:
        if self._may_be_asked():
            return
        wait_s = min(self._wait_s, limit_s)
        self._wake.set()
        try:
            async with asyncio.timeout(wait_s), self._looked:
                await self._looked.wait_for(self._may_be_asked)
        except TimeoutError:
            raise UpstreamError(
                f"{self._link.address} could not be asked within {wait_s:.3f} s: "
                f"{self.why or 'there is no connection'}; retry, or have the operator look at it"
            ) from None
        self._counts.retried(self._link.address.name)

    def _nameable(self, version: str) -> tuple[str, ...]:
        pinned = self._link.address.version
        return ("", pinned) if pinned else ("", version)

    def _require_version(self, name: str, version: str) -> None:
        if version not in self._nameable(version):
            raise UnknownModelError(
                f"version {version!r} of model {name!r} is not served here; expected "
                f"{self._link.address.version!r}"
            )

    def _now(self, why: str) -> None:
        before, self.why = self.why, why
        if bool(before) == bool(why) and before != _NOT_ASKED:
            return
        address = self._link.address
        self._counts.ready(address.name, self.ready)
        _log.log(
            logging.WARNING if why else logging.INFO,
            "model server is not ready" if why else "model server is ready",
            extra={"model": address.name, "target": address.target, "why": why},
        )
        self._on_change()


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in tensors)
