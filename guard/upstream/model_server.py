"""One model server as the data plane sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

from google.protobuf.message import DecodeError

from guard.errors import UnknownModelError, UpstreamError
from guard.messages import InferRequest, ModelDescription, Relayed, TensorSpec
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.upstream.counts import UpstreamCounts, UpstreamPurpose
from guard.upstream.follower import Follower
from guard.upstream.link import Link
from guard.upstream.server_statistics import statistics_of
from guard.upstream.turnstile import Turnstile
from guard.upstream.wire import end_to_end, forwarded

__all__ = ["UpstreamServer"]


class UpstreamServer:
    """Answers requests from a model server, see :class:`~guard.dataplane.model_server.ModelServer`.

    A request is sent once. While there is no connection, or the server has not yet been seen to answer as
    calibrated, it is held back, which is safe as nothing was sent; what is on its way is never sent again.
    The same holds while the server is given another model in place of the one that it has.

    Args:
        link: To the server.
        follower: Knows whether it may be asked.
        counts: Told of requests that were held back.
        wait_s: Longest that a request is held back.
        turnstile: Closed while they are held.
        max_batch_size: Said of a server that does not say it itself.
    """

    def __init__(
        self,
        link: Link,
        follower: Follower,
        counts: UpstreamCounts,
        turnstile: Turnstile,
        *,
        wait_s: float,
        max_batch_size: int,
    ) -> None:
        self._link = link
        self._follower = follower
        self._turnstile = turnstile
        self._counts = counts
        self._wait_s = wait_s
        self._max_batch_size = max_batch_size

    @property
    def held(self) -> bool:
        """Whether requests are held until those under way are done, to give it another model."""
        return self._turnstile.closed

    @property
    def ready(self) -> bool:
        """Whether the server takes requests, and answers as the model did that was calibrated."""
        return self._follower.ready

    @property
    def versions(self) -> tuple[str, ...]:
        """The version that is asked for there or, if that is left to the server, the one that answers."""
        version = self._link.address.version or self._follower.version
        return (version,) if version else ()

    @property
    def why(self) -> str:
        """Why it is not ready; empty while it is."""
        return self._follower.why

    async def statistics(self) -> Mapping[str, bytes]:
        """Return what the server counted of each version of its model; empty where it counts nothing.

        Raises:
            UpstreamStatusError: If the server says no.
            UpstreamError: If it cannot be asked.
        """
        return await statistics_of(self._link)

    def describe(self, name: str) -> ModelDescription:
        """Return what the server says of its model, under the name that it has here.

        Raises:
            UpstreamError: If it has not said anything yet.
        """
        said, config = self._follower.metadata, self._follower.config
        if said is None:
            raise UpstreamError(
                f"{self._link.address} has not said what its model takes and gives: "
                f"{self._follower.why or 'it says nothing of models'}; ask again later"
            )
        return ModelDescription(
            name=name,
            versions=self.versions,
            platform=said.platform,
            backend="",
            max_batch_size=self._max_batch_size,
            inputs=_specs(said.inputs),
            outputs=_specs(said.outputs),
            metadata=said.SerializeToString(),
            config=b"" if config is None else config.SerializeToString(),
        )

    async def infer(self, request: InferRequest, model: LoadedModel, limit_s: float) -> Relayed:
        """Return the server's answer.

        Raises:
            UnknownModelError: If the request names another version than the one that is to answer.
            UpstreamStatusError: If the server says no.
            UpstreamError: If it cannot be asked, or breaks off.
            UpstreamDeadlineError: If it takes too long.
        """
        ends = time.monotonic() + limit_s
        self._require_known(model)
        self._require_version(request, model)
        address = self._link.address
        version = address.version_of(model)
        message = forwarded(request, model=address.model, version=version)
        metadata = end_to_end(request.original.metadata if request.original else ())
        try:
            answer = await self._link.infer(
                message, ends - time.monotonic(), purpose=UpstreamPurpose.PREDICT, metadata=metadata
            )
        except UpstreamError as error:
            self._follower.lost(str(error))
            raise
        self._follower.expect(self._version_of(answer), version)
        return answer

    def under_way(self) -> AbstractContextManager[None]:
        """Count a request for the length of a ``with`` block."""
        return self._turnstile.inside()

    @property
    def datatype(self) -> str:
        """V2 datatype of the images that the server takes; empty where it does not say."""
        said = self._follower.metadata
        return said.inputs[0].datatype if said is not None and len(said.inputs) == 1 else ""

    async def until_ready(self, model: LoadedModel, limit_s: float) -> bool:
        """Hold a request back until the server may be asked.

        Returns:
            False where another model took over from this one meanwhile.

        Raises:
            UpstreamError: If that takes too long.
        """
        if self._link.connected and self._may_be_asked(model):
            return True
        wait_s = min(self._wait_s, limit_s)
        try:
            async with asyncio.timeout(wait_s):
                while not (self._link.connected and self._may_be_asked(model)):
                    await self._follower.until(
                        lambda: self._may_be_asked(model) or self._follower.current() is not model
                    )
                    if not self._may_be_asked(model):
                        return False
                    await self._link.connect()
        except TimeoutError:
            raise UpstreamError(
                f"{self._link.address} could not be asked within {wait_s:.3f} s: "
                f"{self._follower.why or 'there is no connection'}; retry, or have the operator look at it"
            ) from None
        self._counts.retried(self._link.address.name)
        return True

    def _may_be_asked(self, model: LoadedModel) -> bool:
        return not self._turnstile.closed and self._follower.knows(model)

    def _require_known(self, model: LoadedModel) -> None:
        """Refuse what a connection lost since it was waited for may lead to: another model."""
        if not (self._link.connected and self._follower.knows(model)):
            raise UpstreamError(
                f"{self._link.address} was lost before it could be asked: "
                f"{self._follower.why or 'the connection broke'}; retry"
            )

    def _require_version(self, request: InferRequest, model: LoadedModel) -> None:
        versions = (model.version,) if self._link.address.same else self.versions
        if request.model_version not in {"", *versions}:
            raise UnknownModelError(
                f"version {request.model_version!r} of model {request.model_name!r} is not served here; "
                f"loaded: {', '.join(map(repr, versions)) or 'one without a name'}"
            )

    def _version_of(self, answer: Relayed) -> str:
        try:
            return pb.ModelInferResponse.FromString(answer.message).model_version
        except DecodeError:
            raise UpstreamError(
                f"{self._link.address} answered with something that is no ModelInferResponse; have the "
                f"operator look at that server"
            ) from None


def _specs(tensors: object) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in tensors)  # type: ignore[attr-defined]
