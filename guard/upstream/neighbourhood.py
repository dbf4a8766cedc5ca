"""All models that are passed through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from guard.upstream.counts import UpstreamCounts
from guard.upstream.link import Address, Link
from guard.upstream.pass_through import PassThrough
from guard.upstream.tls import Tls

__all__ = ["Neighbourhood"]


class Neighbourhood:
    """Opens connections to their servers, follows them, and closes them; used on the event loop.

    Args:
        counts: Told of calls.
        max_message_bytes: Largest answer.
        poll_s: Seconds between looks whether a server is ready.
        wait_s: Longest that a request is held back until one is.
        on_change: Told whenever one becomes ready, or is not any more.

    Attributes:
        models: What is passed through, by name.
    """

    def __init__(
        self,
        counts: UpstreamCounts,
        *,
        max_message_bytes: int,
        poll_s: float,
        wait_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.models: dict[str, PassThrough] = {}
        self._counts = counts
        self._max_message_bytes = max_message_bytes
        self._poll_s = poll_s
        self._wait_s = wait_s
        self._on_change = on_change
        self._links: list[Link] = []
        self._following: list[asyncio.Task[None]] = []

    def open(self, address: Address, *, guarded: frozenset[str], tls: Tls | None = None) -> None:
        """Pass a model through.

        Args:
            address: Where it is, and which model.
            guarded: Names of the models of that server that are guarded.
            tls: What the connection is secured with; None for plain text.

        Raises:
            SettingsError: If it cannot be secured with that.
        """
        self._counts.add_model(address.name)
        link = Link(
            address,
            self._counts,
            max_message_bytes=self._max_message_bytes,
            credentials=None if tls is None else tls.credentials(),
        )
        self._links.append(link)
        self.models[address.name] = PassThrough(
            link,
            self._counts,
            guarded=guarded,
            interval_s=self._poll_s,
            wait_s=self._wait_s,
            on_change=self._on_change,
        )

    async def start(self) -> None:
        """Look at each once, and follow them from now on."""
        await asyncio.gather(*(model.look() for model in self.models.values()))
        self._following = [asyncio.create_task(model.follow()) for model in self.models.values()]

    async def close(self) -> None:
        """Follow nothing any more, and close the connections."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links))
