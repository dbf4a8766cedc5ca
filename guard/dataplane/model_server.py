"""What the data plane asks of a model server that answers in place of the local model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from guard.messages import InferRequest, ModelDescription, Relayed
from guard.runtime.loader import LoadedModel

__all__ = ["ModelServer"]


@runtime_checkable
class ModelServer(Protocol):
    """What answers in place of the local model; called on the event loop."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests, and answers as the model did that was calibrated."""
        ...

    @property
    def held(self) -> bool:
        """Whether requests are held until those under way are done, to give it another model."""
        ...

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that callers may name."""
        ...

    @property
    def datatype(self) -> str:
        """V2 datatype of the images that it takes; empty where it does not say."""
        ...

    @property
    def why(self) -> str:
        """Why it is not ready; empty while it is."""
        ...

    async def statistics(self) -> Mapping[str, bytes]:
        """Return what it counted of each of its versions, as it says it; empty where it does not."""
        ...

    def describe(self, name: str) -> ModelDescription:
        """Return what it says of its model, under the name it has here."""
        ...

    async def until_ready(self, model: LoadedModel, limit_s: float) -> bool:
        """Wait a little until it is ready and answers as ``model`` did; raise if it does not come to that.

        Returns:
            False where another model took over from ``model`` meanwhile: lease that one.
        """
        ...

    def under_way(self) -> AbstractContextManager[None]:
        """Count a request, from :meth:`until_ready` on until its answer and its check are done with."""
        ...

    async def infer(self, request: InferRequest, model: LoadedModel, limit_s: float) -> Relayed:
        """Return its answer to a request, which ``model`` checks; raise what the caller is to be told."""
        ...
