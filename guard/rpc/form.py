"""What every ModelInfer request has to be, whatever it asks for: not too much, and of known fields alone."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from guard.errors import InvalidRequestError
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["OF_ANY_MODEL", "OF_CLASSIFIERS", "Limits", "has_unknown_fields", "refuse_excess"]

_MAX_PARAMETERS: Final = 64
_MAX_ID_CHARACTERS: Final = 128


@dataclass(frozen=True)
class Limits:
    """How many of each a request may have.

    More of any is no request but a load: two bytes buy an element, and each costs the event loop time.
    """

    inputs: int
    outputs: int


OF_CLASSIFIERS: Final = Limits(inputs=16, outputs=64)
OF_ANY_MODEL: Final = Limits(inputs=512, outputs=512)


def refuse_excess(request: pb.ModelInferRequest, limits: Limits) -> None:
    """Refuse by count, before anything is looked at one by one.

    Raises:
        InvalidRequestError: Naming what there is too much of.
    """
    _refuse_more_than(limits.inputs, "inputs", request.inputs)
    _refuse_more_than(limits.outputs, "outputs", request.outputs)
    _refuse_more_than(_MAX_PARAMETERS, "parameters", request.parameters)
    for tensor in request.inputs:
        _refuse_more_than(_MAX_PARAMETERS, "parameters of one tensor", tensor.parameters)
    for output in request.outputs:
        _refuse_more_than(_MAX_PARAMETERS, "parameters of one tensor", output.parameters)
    if len(request.id) > _MAX_ID_CHARACTERS:
        raise InvalidRequestError(
            f"id: expected at most {_MAX_ID_CHARACTERS} characters, got {len(request.id)}"
        )


def has_unknown_fields(message: Message) -> bool:
    """Return whether a message, or one inside it, holds fields that this guard knows nothing of."""
    if len(UnknownFieldSet(message)):
        return True
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = value.values()
        else:
            inner = (value,) if isinstance(value, Message) else value
        if any(has_unknown_fields(one) for one in inner):
            return True
    return False


def _refuse_more_than(limit: int, what: str, several: Sized) -> None:
    """Refuse a request with more of something than the limit."""
    if len(several) > limit:
        raise InvalidRequestError(f"{what}: expected at most {limit}, got {len(several)}")
