"""A model beside the guarded ones: its requests are passed on to its model server without a check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol, runtime_checkable

from guard.dataplane.relay import require_understood
from guard.messages import InferRequest, InferResponse, ModelDescription, Relayed
from guard.metrics import Metrics

__all__ = ["UNGUARDED", "Neighbour", "pass_on"]

UNGUARDED: Final = "unguarded"
"""``guard_verdict`` of an answer that nothing was checked of."""


@runtime_checkable
class Neighbour(Protocol):
    """The model server of such a model; called on the event loop."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests for the model."""
        ...

    @property
    def why(self) -> str:
        """Why it does not; empty while it does."""
        ...

    @property
    def version(self) -> str:
        """The version that is asked for there; empty where that is left to callers and the server."""
        ...

    async def statistics(self, name: str, version: str) -> Mapping[str, bytes]:
        """Return what it counted of a version, or of all, as it says it; empty where it does not."""
        ...

    async def version_ready(self, version: str) -> bool:
        """Return whether it takes requests for a version of it; empty for whichever the server takes."""
        ...

    async def describe(self, name: str, version: str) -> ModelDescription:
        """Return what it says of a version, under the name that the model has here."""
        ...

    async def infer(self, request: InferRequest, limit_s: float) -> Relayed:
        """Return its answer; raise what the caller is to be told."""
        ...


async def pass_on(
    request: InferRequest, neighbour: Neighbour, metrics: Metrics, limit_s: float
) -> InferResponse:
    """Return the server's answer as it is, marked as unguarded.

    Raises:
        UnsupportedRequestError: If the message has fields that the guard does not know.
        UnavailableError: The caller may retry.
        UpstreamStatusError: The model server refused it.
    """
    require_understood(request)
    metrics.passed_on(request.model_name)
    relayed = await neighbour.infer(request, limit_s)
    return InferResponse(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        outputs=(),
        parameters={"guard_verdict": UNGUARDED},
        relayed=relayed,
    )
