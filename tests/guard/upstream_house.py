"""A guard in front of a small model server, and what its tests ask of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.model_server import Call, ModelServer
from tests.reference_check import images_and_boundary
from tests.serving import PATIENCE_S, Client, infer_request, serving

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()
QUICK = {"upstream_poll_s": 0.05, "upstream_wait_s": PATIENCE_S}
"""Looks often and waits long, so that no test depends on how long something takes."""


def tiny_repository(folder: Path) -> Path:
    """Return a repository with one probed model, whose boundary lies between CLEAN and SUSPICIOUS."""
    write_tiny_artifact(folder / "models", boundary_bits=BOUNDARY, probed=True)
    return folder / "models"


class Addressed(Protocol):
    """A model server somewhere."""

    @property
    def address(self) -> str: ...


@asynccontextmanager
async def in_front_of(
    upstream: Addressed, repository: Path, *, own: dict[str, object] | None = None, **settings: object
) -> AsyncIterator[Client]:
    """Serve the repository's model ``tiny`` in front of a model server."""
    models = {"tiny": {"upstream": upstream.address, **(own or {})}}
    async with serving(repository, models=models, **{**QUICK, **settings}) as client:
        yield client


def be_patient(client: Client) -> None:
    """Have requests wait from now on, where a test set ``upstream_wait_s`` for those that are refused."""
    client.server._fleet._members["tiny"].server._wait_s = PATIENCE_S


def hear_of_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a connection time to tell that it broke, of which a call may hear before."""
    monkeypatch.setattr("guard.upstream.link._HEARSAY_S", 5.0)


def sent(images: np.ndarray = CLEAN[:2], **fields: Any) -> pb.ModelInferRequest:
    """Return a request that the model server knows for one of a caller, by its id."""
    return infer_request(images, **{"id": "an id", **fields})


async def refused(client: Client, request: pb.ModelInferRequest, **options: Any) -> grpc.aio.AioRpcError:
    """Send a request that is refused, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.infer(request, **options)
    return error.value


async def hung_up_on(client: Client, upstream: ModelServer, request: pb.ModelInferRequest) -> Call:
    """Return a call that its caller left, and that the server holds until it is ``open``."""
    upstream.open.clear()
    asking = client.stub.ModelInfer(request, timeout=PATIENCE_S)
    running = asyncio.ensure_future(asking.code())
    call = await upstream.arrival()
    asking.cancel()
    await running
    return call


def trailing(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    """Return the trailing metadata of a refusal."""
    return dict(error.trailing_metadata())


def values(parameters: Any) -> dict[str, Any]:
    """Return a parameter map in plain values."""
    return {name: getattr(wire, wire.WhichOneof("parameter_choice")) for name, wire in parameters.items()}
