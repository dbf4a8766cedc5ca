"""What goes to a model server, and what of its answer goes back: bytes and metadata. Pure.

A request goes on as it came. Where the model has another name there, or a version is to be asked for, that
is said anew behind the original bytes: of a field that comes twice every parser of protobuf takes the last.
Only where outputs of the guard's own are asked for, which the server knows nothing of, is the message written
again.
"""

from __future__ import annotations

from typing import Final

from guard.dataplane.answer import GUARD_OUTPUTS
from guard.messages import InferRequest, Metadata
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["end_to_end", "forwarded"]

_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "content-length", "content-type", "host", "keep-alive", "te", "trailer"),
        *("proxy-authenticate", "proxy-authorization", "proxy-connection", "transfer-encoding", "upgrade"),
        "user-agent",
    }
)
_STATUS_DETAILS: Final = "grpc-status-details-bin"


def forwarded(request: InferRequest, *, model: str, version: str) -> bytes:
    """Return the message that the model server is sent.

    Args:
        request: With its original.
        model: Name of the model there.
        version: Version to ask for; empty for the one that the request names, or none.

    Raises:
        ValueError: If the original was not kept.
    """
    if request.original is None:
        raise ValueError("expected a request with its original bytes, got one without; have them kept")
    message = request.original.message
    if any(name in GUARD_OUTPUTS for name in request.outputs):
        message = _without_our_outputs(message)
    if model != request.model_name:
        message += pb.ModelInferRequest(model_name=model).SerializeToString()
    if version and version != request.model_version:
        message += pb.ModelInferRequest(model_version=version).SerializeToString()
    return message


def end_to_end(metadata: Metadata) -> Metadata:
    """Return the metadata that is meant for the other end: not for the next hop, and not the guard's own.

    Examples:
        >>> end_to_end((("te", "trailers"), ("x-request-id", "7"), ("grpc-encoding", "gzip")))
        (('x-request-id', '7'),)
    """
    return tuple((key, value) for key, value in metadata if _is_end_to_end(key))


def _is_end_to_end(key: str) -> bool:
    if key == _STATUS_DETAILS:
        return True
    return key not in _HOP_BY_HOP and not key.startswith(("grpc-", ":", "guard-"))


def _without_our_outputs(message: bytes) -> bytes:
    request = pb.ModelInferRequest.FromString(message)
    theirs = [output for output in request.outputs if output.name not in GUARD_OUTPUTS]
    del request.outputs[:]
    request.outputs.extend(theirs)
    return request.SerializeToString()
