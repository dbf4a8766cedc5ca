"""All model servers that a guard stands in front of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from guard.artifact import Profile
from guard.dataplane import ServedModel
from guard.runtime.loader import LoadedModel
from guard.upstream.counts import UpstreamCounts
from guard.upstream.follower import Follower
from guard.upstream.forms import EncodedInput, form_of
from guard.upstream.link import Address, Link
from guard.upstream.model_server import UpstreamServer
from guard.upstream.predictor import Predictor
from guard.upstream.repository_client import RepositoryClient
from guard.upstream.takeover import Step, Takeover
from guard.upstream.tls import Tls
from guard.upstream.turnstile import Turnstile

__all__ = ["Fleet"]


@dataclass(frozen=True)
class _Member:
    """One model server.

    Attributes:
        checks: Whether the blends of a check go there too, or are run here.
        predictor_of: Returns what asks it for the predictions of a model with that profile and version.
        takeover: Has it serve another version.
    """

    link: Link
    follower: Follower
    server: UpstreamServer
    checks: bool
    predictor_of: Callable[[Profile, str], Predictor]
    takeover: Takeover


class Fleet:
    """Opens connections to model servers, follows them, and closes them; used on the event loop.

    Args:
        registry: Where calls are counted.
        max_message_bytes: Largest answer.
        timeout_s: Longest wait for a batch of a check.
        poll_s: Seconds between looks whether a server is ready.
        wait_s: Longest that a request is held back until one is.
        load_s: Longest that one may take to load a version.
        drain_s: Longest wait for requests under way where a model is exchanged in place.
        on_change: Told whenever one becomes ready, or is not any more.

    Attributes:
        counts: What is counted of them.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        max_message_bytes: int,
        timeout_s: float,
        poll_s: float,
        wait_s: float,
        load_s: float,
        drain_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.counts = self._counts = UpstreamCounts(registry)
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._wait_s = wait_s
        self._load_s = load_s
        self._drain_s = drain_s
        self._on_change = on_change
        self._members: dict[str, _Member] = {}
        self._following: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """Return how many servers there are."""
        return len(self._members)

    def open(
        self,
        address: Address,
        *,
        checks: bool,
        max_batch_size: int,
        loads: bool = False,
        tls: Tls | None = None,
    ) -> None:
        """Stand in front of a model server.

        Args:
            address: Where it is, and which model.
            checks: Whether the blends of a check go there too, or are run here.
            max_batch_size: Most rows in a request, where the server does not say it.
            loads: Whether it is asked to load the versions that are to serve.
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
        loop = asyncio.get_running_loop()

        def predictor_of(profile: Profile, version: str) -> Predictor:
            return Predictor(
                link,
                profile,
                loop,
                form=lambda: form_of(follower.metadata, profile.input),
                version=version if address.same else address.version,
                timeout_s=self._timeout_s,
                max_batch_size=lambda: _batch_limit(follower, max_batch_size),
                gate=follower,
            )

        follower = Follower(
            link,
            lambda model: predictor_of(model.profile, model.version),
            interval_s=self._poll_s,
            on_change=partial(self._changed, address.name),
        )
        turnstile = Turnstile()
        server = UpstreamServer(
            link, follower, self._counts, turnstile, wait_s=self._wait_s, max_batch_size=max_batch_size
        )
        loader = RepositoryClient(link, self._counts, self._load_s) if loads else None
        takeover = Takeover(link, follower, turnstile, loader, self._drain_s)
        self._members[address.name] = _Member(link, follower, server, checks, predictor_of, takeover)

    def predict_by(self, name: str) -> Callable[[Profile, str], Predictor] | None:
        """Return what makes a model's predictions for its check; None where they are made here."""
        member = self._members.get(name)
        return member.predictor_of if member is not None and member.checks else None

    async def prepare(self, candidate: LoadedModel, serving: LoadedModel, step: Step) -> str:
        """See :meth:`guard.control.model_servers.ModelServers.prepare`."""
        member = self._members.get(candidate.name)
        return "" if member is None else await member.takeover.prepare(candidate, serving, step)

    @asynccontextmanager
    async def exchanging(
        self, candidate: LoadedModel, serving: LoadedModel, step: Step
    ) -> AsyncIterator[None]:
        """See :meth:`guard.control.model_servers.ModelServers.exchanging`."""
        member = self._members.get(candidate.name)
        if member is None:
            yield
            return
        async with member.takeover.exchanging(candidate, serving, step):
            yield

    async def attach(self, models: Mapping[str, ServedModel]) -> None:
        """Have the servers answer for these models, look at each once, and follow them from now on."""
        for name, member in self._members.items():
            models[name].upstream = member.server
            member.follower.current = partial(_current, models[name])
            record = models[name].encoded
            if record is not None:
                member.follower.encoded = EncodedInput(record, models[name].encoded_input)
        await asyncio.gather(*(member.follower.look() for member in self._members.values()))
        for member in self._members.values():
            self._following.append(asyncio.create_task(member.follower.follow()))

    async def close(self) -> None:
        """Follow nothing any more, and close the connections."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await asyncio.gather(*(member.link.close() for member in self._members.values()))

    def _changed(self, name: str) -> None:
        self._counts.ready(name, self._members[name].follower.ready)
        self._on_change()


def _current(served: ServedModel) -> LoadedModel | None:
    return served.slot.current


def _batch_limit(follower: Follower, otherwise: int) -> int:
    config = follower.config
    return config.max_batch_size if config is not None and config.max_batch_size > 0 else otherwise
