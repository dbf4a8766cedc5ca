"""A request for a model that is passed through: whom it is for, and that it leads nowhere else.

What the tensors are, which outputs there are and what the parameters mean is for the model server to say.
What would have it read memory that callers registered, take a model from the request, or understand the
message otherwise than the guard does, is refused here too: the server may be that of a guarded model as well.
"""

from __future__ import annotations

from typing import Final

from guard.errors import UncheckableInputError, UnsupportedRequestError
from guard.messages import InferRequest, Metadata, Original
from guard.rpc.form import OF_ANY_MODEL, has_unknown_fields, refuse_excess
from guard.rpc.parameters import refuse_shared_memory
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["decode_passed"]

_REFUSED: Final = ("file:", "guard_")


def decode_passed(
    request: pb.ModelInferRequest,
    *,
    timeout_s: float | None,
    client: str,
    message: bytes,
    metadata: Metadata,
) -> InferRequest:
    """Return whom a request is for; its tensors, outputs and parameters stay in its bytes.

    Args:
        request: As it came.
        timeout_s: Seconds that the caller still waits, None for no deadline.
        client: Address that it came from.
        message: The bytes it was read from.
        metadata: What came beside them.

    Raises:
        InvalidRequestError: If it holds more of anything than any request has use for.
        UncheckableInputError: If a tensor lies in shared memory.
        UnsupportedRequestError: If a parameter is the guard's, or would override a model.
    """
    refuse_excess(request, OF_ANY_MODEL)
    for tensor in request.inputs:
        refuse_shared_memory(f"input {tensor.name!r}", tensor.parameters)
    for output in request.outputs:
        refuse_shared_memory(f"output {output.name!r}", output.parameters)
    for name in request.parameters:
        _refuse_redirection(name)
    return InferRequest(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        inputs=(),
        unread=(),
        timeout_s=timeout_s,
        client=client,
        original=Original(message, metadata, not has_unknown_fields(request)),
    )


def _refuse_redirection(name: str) -> None:
    if name.startswith("shared_memory"):
        raise UncheckableInputError(
            f"request parameter {name!r}: nothing is read from shared memory; send the tensors in the request"
        )
    if name.startswith(_REFUSED):
        raise UnsupportedRequestError(
            f"request parameter {name!r} is not passed on, since it is the guard's or would override a "
            f"model; leave it out"
        )
