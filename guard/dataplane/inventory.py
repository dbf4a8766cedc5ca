"""What is served, and what it has done: the data plane's answers to those who do not infer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from guard.dataplane.neighbour import Neighbour
from guard.dataplane.served import ServedModel
from guard.dataplane.statistics import Statistics
from guard.messages import ModelCounts, ModelDescription, ModelState, TensorSpec

__all__ = ["Inventory"]

_SOME_VERSION: Final = "1"  # of a server that has none: clients of statistics read a number


@dataclass(frozen=True)
class Inventory:
    """Tells of models, guarded and passed through."""

    models: Mapping[str, ServedModel]
    neighbours: Mapping[str, Neighbour]
    counted: Statistics
    max_request_rows: int

    def describe(self, name: str, version: str, served: ServedModel) -> ModelDescription:
        """Return what a guarded model takes and gives.

        Raises:
            UpstreamError: If its model server has not said it yet.
        """
        if served.upstream is not None:
            said = served.upstream.describe(name)
            return replace(said, versions=(version,)) if version else said
        with served.slot.lease() as model:
            source, sink = model.profile.input, model.profile.output
            return ModelDescription(
                name=name,
                versions=(version,) if version else served.versions,
                platform="onnxruntime_onnx",
                backend="onnxruntime",
                max_batch_size=self.max_request_rows,
                inputs=(TensorSpec(source.name, source.datatype, (-1, *source.shape)),),
                outputs=(TensorSpec(sink.name, sink.datatype, (-1, sink.classes)),),
            )

    def states(self) -> Iterator[ModelState]:
        """Yield every version that is served, or ought to be, and why it is not."""
        for name, served in sorted(self.models.items()):
            yield from (ModelState(name, version, _why_not(served)) for version in served.versions or ("",))
        for name, neighbour in sorted(self.neighbours.items()):
            yield ModelState(name, neighbour.version, neighbour.why)

    async def statistics(self, name: str, version: str) -> list[ModelCounts]:
        """Return what was counted of a model that is here; where no name is given, of all that are ready.

        Raises:
            UnavailableError: If a model server cannot be asked for its own.
        """
        if name:
            return await self._of(name, version)
        ready = [one for one, served in self.models.items() if served.ready]
        ready += [one for one, neighbour in self.neighbours.items() if neighbour.ready]
        return [counts for one in sorted(ready) for counts in await self._of(one, version)]

    async def _of(self, name: str, version: str) -> list[ModelCounts]:
        neighbour = self.neighbours.get(name)
        if neighbour is not None:
            return await self._of_neighbour(name, neighbour, version)
        served = self.models[name]
        theirs = {} if served.upstream is None else await served.upstream.statistics()
        if not served.versions:
            checked_by = served.slot.current.version if served.slot.current is not None else _SOME_VERSION
            return [replace(self.counted.of(name, ""), version=checked_by)]
        versions = [one for one in served.versions if version in {"", one}]
        return [replace(self.counted.of(name, one), theirs=theirs.get(one, b"")) for one in versions]

    async def _of_neighbour(self, name: str, neighbour: Neighbour, version: str) -> list[ModelCounts]:
        theirs = await neighbour.statistics(name, version)
        if not theirs:
            return [replace(self.counted.of(name, ""), version=version or neighbour.version or _SOME_VERSION)]
        return [ModelCounts(name, one, theirs=said, passed=True) for one, said in theirs.items()]


def _why_not(served: ServedModel) -> str:
    """Return why a model takes no requests; empty where it does."""
    if served.slot.current is None:
        return "no version is loaded"
    return "" if served.upstream is None else served.upstream.why
