"""What a request and its answer are once the wire format is left behind.

``rpc`` turns protobuf messages into these and back; ``dataplane`` knows nothing else. All of
them are immutable, none knows about gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

import numpy as np

__all__ = [
    "InferRequest",
    "InferResponse",
    "Metadata",
    "ModelCounts",
    "ModelDescription",
    "ModelState",
    "Original",
    "Parameter",
    "Reading",
    "Relayed",
    "ServerDescription",
    "Tensor",
    "TensorSpec",
    "TotalTime",
]

Parameter = bool | int | float | str
Metadata = tuple[tuple[str, str | bytes], ...]

_NONE: Mapping[str, Parameter] = MappingProxyType({})
_NO_CLASSIFICATION: Mapping[str, int] = MappingProxyType({})


class Reading(Enum):
    """How far a request is looked into.

    Attributes:
        TENSORS: All of it, as it is to be checked.
        NAMES: All but what the tensors hold, where sampling left it out.
        NOTHING: Whom it is for, where it is passed through.
    """

    TENSORS = auto()
    NAMES = auto()
    NOTHING = auto()


@dataclass(frozen=True)
class Tensor:
    """A named array with its V2 datatype.

    ``data`` has the tensor's shape, and the dtype in which it is held (:data:`guard.arrays.HELD`). BYTES that
    came are an array of objects, Python's bytes; those that go out an array of numpy's.
    """

    name: str
    datatype: str
    data: np.ndarray


@dataclass(frozen=True)
class Original:
    """A request as it came, for a model server behind the guard.

    Attributes:
        message: Its bytes.
        metadata: What the caller sent beside it.
        understood: Whether the guard knows every field of it.
    """

    message: bytes
    metadata: Metadata = ()
    understood: bool = True


@dataclass(frozen=True)
class Relayed:
    """What a model server behind the guard answered.

    Attributes:
        message: Its bytes.
        initial_metadata, trailing_metadata: What came before and after it.
        with_outputs: Whether its outputs are wanted; False where the caller asked for the guard's alone.
    """

    message: bytes
    initial_metadata: Metadata = ()
    trailing_metadata: Metadata = ()
    with_outputs: bool = True


@dataclass(frozen=True)
class InferRequest:
    """One ModelInfer request.

    Attributes:
        model_name: Model asked for.
        model_version: Version asked for; empty for whichever is served.
        id: Caller's id, echoed in the answer.
        inputs: Decoded input tensors, in the caller's order.
        outputs: Names of the outputs asked for; empty means the model's own outputs.
        classifications: How many of the highest classes are asked for in place of an output, by its name.
        parameters: Request parameters, wire names kept.
        timeout_s: Seconds the caller still waits, counted from the call to
            :meth:`guard.dataplane.DataPlane.infer`; None for no deadline.
        client: Address that the request came from, without its port; empty where it is not known.
        original: The request as it came; None where it was not kept.
        unread: What the inputs are said to be, where nobody looks into them and ``inputs`` is empty; None
            where they were read.
    """

    model_name: str
    inputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""
    outputs: tuple[str, ...] = ()
    classifications: Mapping[str, int] = field(default_factory=lambda: _NO_CLASSIFICATION)
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: _NONE)
    timeout_s: float | None = None
    client: str = ""
    original: Original | None = None
    unread: tuple[TensorSpec, ...] | None = None


@dataclass(frozen=True)
class InferResponse:
    """The answer to one :class:`InferRequest`.

    Attributes:
        relayed: A model server's answer, which outputs and parameters are added to; None for none.
    """

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: _NONE)
    relayed: Relayed | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, V2 datatype and shape of a tensor; -1 stands for a free dimension, the batch included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What ModelMetadata and ModelConfig say of a model.

    Attributes:
        max_batch_size: Most rows in one request; the first -1 of each shape is that batch.
        metadata, config: The bytes in which a model server behind the guard says the same and more; empty
            where there is none.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: bytes = b""
    config: bytes = b""


@dataclass(frozen=True)
class ServerDescription:
    """What ServerMetadata says of the server."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class TotalTime:
    """How often something happened, and how many nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True)
class ModelCounts:
    """What ModelStatistics says of a version, counted since the start.

    Attributes:
        last_inference_ms: When the last request ended, milliseconds since the epoch; 0 for never.
        inferences: Rows that were answered.
        success, fail: Requests answered and not answered, rejected ones among the latter.
        queue, compute: How long answered requests waited, and how long they were worked on.
        batches: Device calls by how many images, blends included, each had.
        theirs: The bytes in which a model server behind the guard says the same of itself; empty for none.
        passed: Whether ``theirs`` is all there is to say, as of a model that nothing is checked of.
    """

    name: str
    version: str
    last_inference_ms: int = 0
    inferences: int = 0
    success: TotalTime = TotalTime()
    fail: TotalTime = TotalTime()
    queue: TotalTime = TotalTime()
    compute: TotalTime = TotalTime()
    batches: Mapping[int, TotalTime] = field(default_factory=lambda: MappingProxyType({}))
    theirs: bytes = b""
    passed: bool = False


@dataclass(frozen=True)
class ModelState:
    """Whether a version takes requests; ``why_not`` is empty where it does."""

    name: str
    version: str
    why_not: str = ""
