"""V2 parameter maps: what they hold, which names are ours, and which are refused and why.

Parameters can redirect a tensor (shared memory), tie requests together (sequences) or change what an
answer means. One that is not understood is therefore refused, never dropped; ``classification`` of an output
is understood, and the few known to change nothing for a stateless server are accepted without effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from guard.errors import InvalidRequestError, UncheckableInputError, UnsupportedRequestError
from guard.messages import Parameter
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = [
    "SIZE",
    "add_parameters",
    "classification_of",
    "decode_parameters",
    "own_parameters",
    "refuse_shared_memory",
    "refuse_tensor_parameters",
    "refuse_wrong_size",
]

OWN_PREFIX: Final = "guard_"
WITHOUT_EFFECT: Final = (
    "priority",
    "timeout",
    "headers",
    "binary_data_output",
    "triton_enable_empty_final_response",
)
TENSOR_WITHOUT_EFFECT: Final = ("binary_data",)
SIZE: Final = "binary_data_size"
"""Of HTTP's bodies, where it says how many bytes a tensor takes; KServe's client says it over gRPC too."""

CLASSIFICATION: Final = "classification"

_INT64_MIN, _INT64_MAX, _UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1


def decode_parameters(wire: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    """Return the values of a parameter map.

    Raises:
        InvalidRequestError: If a parameter carries no value.
    """
    return {name: _decode(name, wire[name]) for name in wire}


def add_parameters(wire: Mapping[str, pb.InferParameter], parameters: Mapping[str, Parameter]) -> None:
    """Set parameters of a message, in place.

    Args:
        wire: The message's map, which makes an entry where it is asked for one that it does not have.
        parameters: What to set.

    Raises:
        ValueError: If an integer fits neither 64-bit field.
    """
    for name, value in parameters.items():
        _set(name, wire[name], value)


def own_parameters(wire: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    """Return the request parameters meant for the guard, and refuse those it cannot honour.

    Raises:
        InvalidRequestError: If one of the guard's own carries no value.
        UnsupportedRequestError: If a parameter asks for something the guard does not do.
    """
    own = {}
    for name in wire:
        if name.startswith(OWN_PREFIX):
            own[name] = _decode(name, wire[name])
        elif name not in WITHOUT_EFFECT:
            raise UnsupportedRequestError(_why_not(name))
    return own


def refuse_shared_memory(tensor: str, parameters: Iterable[str]) -> None:
    """Refuse a tensor (``input 'x'``, ``output 'y'``) that lies in shared memory.

    Raises:
        UncheckableInputError: If any parameter's name starts with ``shared_memory``.
    """
    for name in parameters:
        if name.startswith("shared_memory"):
            raise UncheckableInputError(
                f"{tensor}: the guard does not read shared memory ({name!r}), since what lies there can "
                "change after the check; send the tensor in the request"
            )


def classification_of(tensor: str, parameters: Mapping[str, pb.InferParameter]) -> int | None:
    """Return how many of the highest classes are asked for in place of an output; None for the output itself.

    Args:
        tensor: The output, for errors.
        parameters: Its parameters.

    Raises:
        InvalidRequestError: If it is no whole number from 1 on.
        UnsupportedRequestError: If anything else is asked of the output.
    """
    refuse_tensor_parameters(tensor, (name for name in parameters if name != CLASSIFICATION))
    if CLASSIFICATION not in parameters:
        return None
    wire = parameters[CLASSIFICATION]
    choice = wire.WhichOneof("parameter_choice")
    count: object = getattr(wire, choice) if choice else None
    if choice not in {"int64_param", "uint64_param"} or not isinstance(count, int) or count < 1:
        raise InvalidRequestError(
            f"{tensor}: {CLASSIFICATION} is the number of classes wanted, expected an int64 from 1 on, "
            f"got {count!r}"
        )
    return count


def refuse_tensor_parameters(tensor: str, parameters: Iterable[str]) -> None:
    """Refuse whatever else is asked of a tensor.

    Raises:
        UnsupportedRequestError: If a parameter is not one of those known to change nothing.
    """
    unknown = sorted(name for name in parameters if name not in TENSOR_WITHOUT_EFFECT)
    if unknown:
        raise UnsupportedRequestError(
            f"{tensor}: parameters {', '.join(map(repr, unknown))} are not supported; send it without them"
        )


def refuse_wrong_size(tensor: str, parameters: Mapping[str, pb.InferParameter], count: int | None) -> None:
    """Refuse a tensor that says another size of itself than it has, so that nobody can read it otherwise.

    Args:
        tensor: The input, for errors.
        parameters: Its parameters.
        count: Bytes of its raw contents; None where it has none.

    Raises:
        InvalidRequestError: If ``binary_data_size`` is there and is anything else.
    """
    if SIZE not in parameters:
        return
    choice = parameters[SIZE].WhichOneof("parameter_choice")
    said = getattr(parameters[SIZE], choice) if choice in {"int64_param", "uint64_param"} else None
    if count is None or said != count:
        raise InvalidRequestError(
            f"{tensor}: {SIZE}: expected the size of its raw contents, "
            f"{'of which there are none' if count is None else f'{count} bytes'}, got {said!r}; leave it out"
        )


def _why_not(name: str) -> str:
    """Return why a request parameter is refused, and what would be taken."""
    if name.startswith("sequence_"):
        return (
            f"request parameter {name!r} is not supported: the guard checks each request by itself and "
            "keeps no sequences; send requests without sequence_* parameters"
        )
    return (
        f"request parameter {name!r} is not supported; supported: {OWN_PREFIX}*, and without effect: "
        f"{', '.join(WITHOUT_EFFECT)}"
    )


def _decode(name: str, wire: pb.InferParameter) -> Parameter:
    """Return the value of one parameter."""
    choice = wire.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequestError(f"parameter {name!r} has no value; set one of its *_param fields")
    value: Parameter = getattr(wire, choice)
    return value


def _set(name: str, wire: pb.InferParameter, value: Parameter) -> None:
    """Set one value; the order matters, for a bool is an int."""
    if isinstance(value, bool):
        wire.bool_param = value
    elif isinstance(value, str):
        wire.string_param = value
    elif isinstance(value, float):
        wire.double_param = value
    elif _INT64_MIN <= value <= _INT64_MAX:
        wire.int64_param = value
    elif 0 < value <= _UINT64_MAX:
        wire.uint64_param = value
    else:
        raise ValueError(f"parameter {name!r}: expected an integer of 64 bits, got {value}")
