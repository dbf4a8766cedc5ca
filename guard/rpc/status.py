"""Errors to gRPC statuses: one table, and one way for what is in no table.

An error the guard raised on purpose keeps its words. Anything else is a defect: its traceback goes to
the log under an id, and the caller gets the id and nothing of the inside.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc

from guard import errors

__all__ = [
    "STATUS_OF",
    "MessageTooLargeError",
    "UnknownServiceError",
    "UnservedRpcError",
    "metadata_of",
    "status_of",
]

_LOG = logging.getLogger(__name__)

# Both travel in headers, of which a client takes 8 KiB by default; a caller's own names are in messages.
_MAX_MESSAGE_BYTES: Final = 2000
_MAX_ROWS: Final = 100
_UPSTREAM: Final = ("guard-upstream", "true")


class UnservedRpcError(errors.RequestError):
    """The protocol has this rpc and the guard does not serve it."""


class MessageTooLargeError(errors.RequestError):
    """The request has more bytes than the operator allows."""


class UnknownServiceError(errors.RequestError):
    """The health of a service was asked for that is not here."""


STATUS_OF: Final[Mapping[type[errors.GuardError], grpc.StatusCode]] = MappingProxyType(
    {
        errors.GuardError: grpc.StatusCode.INTERNAL,
        errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.UnknownModelError: grpc.StatusCode.NOT_FOUND,
        errors.UnsupportedRequestError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.UncheckableInputError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.InputRejectedError: grpc.StatusCode.PERMISSION_DENIED,
        UnservedRpcError: grpc.StatusCode.UNIMPLEMENTED,
        UnknownServiceError: grpc.StatusCode.NOT_FOUND,
        MessageTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
        errors.QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
        errors.CheckFailedError: grpc.StatusCode.INTERNAL,
        errors.UpstreamError: grpc.StatusCode.UNAVAILABLE,
        errors.WorkerError: grpc.StatusCode.ABORTED,
        errors.UpstreamDeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.UpstreamStatusError: grpc.StatusCode.INTERNAL,  # it brings its own, see status_of
        errors.ArtifactError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.MissingFileError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.HashMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.UnsafePathError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.UnsafeArrayError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.ProbeError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.ProfileError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.UnfitModelError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.OperationError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.CandidateError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.BusyError: grpc.StatusCode.ABORTED,
        errors.AccessDeniedError: grpc.StatusCode.UNAUTHENTICATED,
        errors.SettingsError: grpc.StatusCode.INTERNAL,
    }
)
"""Status of every class of :mod:`guard.errors`; a house test fails for one that is not here."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the status and the message that a caller gets for an error.

    An error that is not the guard's own is logged with its traceback and answered with the id it was
    logged under.
    """
    if isinstance(error, errors.UpstreamStatusError):
        return grpc.StatusCode[error.code], str(error)
    for cls in type(error).__mro__:
        if cls in STATUS_OF:
            return STATUS_OF[cls], _shortened(str(error) or type(error).__name__)
    log_id = secrets.token_hex(6)
    _LOG.error("unexpected error %s", log_id, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"unexpected error, see server log {log_id}"


def metadata_of(error: BaseException) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of an error: for a rejected input, which rows and their scores.

    Only the first 100 rows are listed, for metadata is bounded; ``guard-row-count`` has them all. Where the
    model server behind the guard failed, ``guard-upstream`` is ``true``, beside what came from there.
    """
    if isinstance(error, errors.UpstreamStatusError):
        return (*error.metadata, _UPSTREAM)
    if isinstance(error, errors.UpstreamError | errors.UpstreamDeadlineError):
        return (_UPSTREAM,)
    if not isinstance(error, errors.InputRejectedError):
        return ()
    return (
        ("guard-verdict", "reject"),
        ("guard-row-count", str(len(error.rows))),
        ("guard-rows", ",".join(map(str, error.rows[:_MAX_ROWS]))),
        ("guard-scores", ",".join(f"{score:.6g}" for score in error.scores[:_MAX_ROWS])),
    )


def _shortened(message: str) -> str:
    """Return a message that surely fits into a header."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "…"
