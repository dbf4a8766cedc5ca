"""Asks a model server to load a version, by the model repository calls of its protocol."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from guard.errors import UpstreamDeadlineError, UpstreamError, UpstreamStatusError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.upstream.acquaintance import require_ready
from guard.upstream.counts import UpstreamCounts, UpstreamLoad
from guard.upstream.link import Link

__all__ = ["RepositoryClient", "require_kept"]

_LOOK_S: Final = 0.1


class RepositoryClient:
    """Has one model server load versions; on the event loop, one at a time.

    Args:
        link: To the server.
        counts: Told how it went.
        limit_s: Longest wait for a version to be ready.

    Attributes:
        pending: The call that was given up waiting for, while it is not known how it ended; else None.
    """

    def __init__(self, link: Link, counts: UpstreamCounts, limit_s: float) -> None:
        self.pending: asyncio.Task[Any] | None = None
        self._link = link
        self._counts = counts
        self._limit_s = limit_s

    async def load(self, model: LoadedModel) -> None:
        """Have the server load what its repository holds, and wait until a version is ready.

        A call that takes too long is left to end by itself: cancelling it would not keep the server from
        loading, only the guard from knowing.

        Raises:
            UpstreamError: If it does not load it, or breaks off.
            UpstreamDeadlineError: If it takes too long.
        """
        began, outcome = time.monotonic(), UpstreamLoad.FAILED
        try:
            async with asyncio.timeout(self._limit_s):
                await self._ask(model.version)
                await self._until_ready(model)
            outcome = UpstreamLoad.READY
        except TimeoutError:
            outcome = UpstreamLoad.LATE
            raise UpstreamDeadlineError(
                f"{self._link.address} did not load version {model.version!r} within {self._limit_s:.3f} s, "
                f"and may yet; look at its log, restart it if it hangs, or allow more time (upstream_load_s)"
            ) from None
        finally:
            self._counts.loaded(self._link.address.name, outcome, time.monotonic() - began)

    async def _ask(self, version: str) -> None:
        if self.pending is not None:
            await asyncio.wait([self.pending])
        call = asyncio.ensure_future(self._call(version))
        self.pending = call
        call.add_done_callback(self._ended)
        await asyncio.shield(call)

    async def _call(self, version: str) -> None:
        address = self._link.address
        try:
            await self._link.ask(
                "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=address.model)
            )
        except UpstreamStatusError as error:
            words = " ".join(str(error).split())
            if error.code == "UNIMPLEMENTED":
                raise UpstreamError(
                    f"{address} has no model repository calls ({words or error.code}), so nothing can be "
                    f"loaded there from here; load it by the server's own means, and set "
                    f'upstream_load = "never"'
                ) from error
            raise UpstreamError(
                f"{address} does not load version {version!r}, and says {error.code}: {words}; see to its "
                f"files there and swap again, or load it by the server's own means first"
            ) from error

    async def _until_ready(self, model: LoadedModel) -> None:
        while True:
            try:
                await require_ready(self._link, model)
            except (UpstreamError, UpstreamStatusError):
                if not self._link.connected:
                    raise
                await asyncio.sleep(_LOOK_S)
            else:
                return

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self.pending = None
        if not call.cancelled():
            call.exception()  # seen: whoever still waits for it gets it


def require_kept(config: pb.ModelConfig | None, serving: str, candidate: str, where: object) -> None:
    """Refuse to load a version where that would take away the one that serves (Triton's ``latest``).

    Args:
        config: What the server says of the model; None where it says nothing.
        serving: Version that serves.
        candidate: Version to load.
        where: The server, for the error.

    Raises:
        UpstreamError: Saying what its configuration has to be.
    """
    if config is None or config.version_policy.WhichOneof("policy_choice") != "latest":
        return
    kept = max(1, config.version_policy.latest.num_versions)
    if abs(int(candidate) - int(serving)) >= kept:
        raise UpstreamError(
            f"{where} keeps the latest {kept} of a model's versions, so that {serving!r}, which serves, and "
            f"{candidate!r} may not be there together; write version_policy: {{ all {{ }} }} into its "
            f"config.pbtxt, and have it load the model once by hand"
        )
