"""Two versions of a model that can be told apart by their answers, and by their verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from guard.control.candidate import manifest_digest
from guard.control.served_versions import ModelRecord, ServedVersion, ServedVersions
from guard.errors import CandidateError
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.guard.upstream_house import CLEAN, in_front_of, sent, values
from tests.model_server import ModelServer
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S, Client
from tests.tiny_models import linear_classifier

OLD, NEW = linear_classifier(), linear_classifier(seed=5)
ACCEPTS_ALL, FLAGS_ALL = 0.0, 4.0  # bits; ten classes have at most 3.3
CLIENTS = 6


def two_versions(folder: Path) -> Path:
    """Return a repository whose version 1 accepts everything, and 2, another network, flags everything."""
    repository = folder / "models"
    write_tiny_artifact(repository, model=OLD, boundary_bits=ACCEPTS_ALL, probed=True)
    write_tiny_artifact(repository, model=NEW, boundary_bits=FLAGS_ALL, probed=True)
    return repository


@asynccontextmanager
async def serving_the_first(
    upstream: ModelServer, repository: Path, *, own: dict[str, object], **settings: object
) -> AsyncIterator[Client]:
    """Serve version 1 of a repository that has two, in front of a model server."""
    state = {"state_dir": repository.parent / "state", "policy": "flag"}
    first = ServedVersion(version="1", digest=manifest_digest(repository / "tiny" / "1"))
    ServedVersions(repository.parent / "state").write("tiny", ModelRecord(current=first, newest=2))
    async with in_front_of(upstream, repository, own=own, **{**state, **settings}) as client:
        yield client


def whose(answer: pb.ModelInferResponse) -> tuple[str, str]:
    """Return the network that predicted an answer for CLEAN[:2], and the version whose boundary judged it."""
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 10)
    of_old = bool(np.allclose(logits, linear_logits(CLEAN[:2]), atol=1e-4))
    verdict = values(answer.parameters)["guard_verdict"]
    return "1" if of_old else "2", {"accept": "1", "flag": "2"}[verdict]


@dataclass
class Crowd:
    """Clients that ask all the time."""

    client: Client
    answers: list[pb.ModelInferResponse] = field(default_factory=list)
    errors: list[grpc.aio.AioRpcError] = field(default_factory=list)

    async def __aenter__(self) -> Crowd:
        self._over = False
        self._asking = [asyncio.create_task(self._ask()) for _ in range(CLIENTS)]
        await self.more()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._asking)

    async def more(self, count: int = 2 * CLIENTS) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.answers) < wanted:  # noqa: ASYNC110 - several tasks answer
                await asyncio.sleep(0.01)

    @property
    def seen(self) -> set[tuple[str, str]]:
        """Networks and boundaries behind the answers."""
        return {whose(answer) for answer in self.answers}

    async def _ask(self) -> None:
        while not self._over:
            try:
                self.answers.append(await self.client.infer(sent()))
            except grpc.aio.AioRpcError as error:
                self.errors.append(error)
                await asyncio.sleep(0.01)


async def until(what: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def swapped(client: Client, version: str = "2") -> str:
    """Swap; return why it could not be, or an empty text."""
    try:
        await client.server.control.swap("tiny", version, actor="test")
    except CandidateError as error:
        return str(error)
    return ""


async def serves(client: Client) -> str:
    """Return the version that serves."""
    [status] = await client.server.control.status("tiny")
    assert status.current is not None
    return status.current.version
