"""Every error the guard raises on purpose, ordered by who has to act.

::

    GuardError
    ├── RequestError               the caller fixes the request
    │   ├── InvalidRequestError        malformed: name, shape, datatype, byte count, parameter
    │   ├── UnknownModelError          no such model or version here
    │   ├── UnsupportedRequestError    well formed, but outside what the guard allows
    │   ├── UncheckableInputError      the input cannot be checked (NaN, Inf, shared memory)
    │   └── InputRejectedError         the check found a trigger and the policy is `enforce`
    ├── UnavailableError           the caller retries, here or elsewhere
    │   ├── QueueFullError             shed: more is waiting than the guard promised to hold
    │   ├── DeadlineError              the caller's time ran out before the work was done
    │   │   └── UpstreamDeadlineError      it was the model server that took too long
    │   ├── ShuttingDownError          the server is stopping
    │   ├── CheckFailedError           the model or the check failed on this input
    │   ├── UpstreamError              the model server behind the guard cannot be asked, or broke off
    │   └── WorkerError                a worker process cannot be started, is not there, or does not answer
    ├── UpstreamStatusError        the model server answered with a status of its own, passed on as it came
    ├── ArtifactError              the operator fixes what is on disk
    │   ├── MissingFileError           a file of the artifact is not there
    │   ├── HashMismatchError          a file is not the one the manifest lists
    │   ├── UnsafePathError            a path leads out of the artifact's directory
    │   ├── UnsafeArrayError           an array that could run code when read (pickle)
    │   ├── ProbeError                 the loaded model does not answer as it did at calibration
    │   ├── ProfileError               profile or manifest malformed, or of another model
    │   └── UnfitModelError            the model is no image classifier the guard can serve
    ├── OperationError             what an operator asked of a running guard cannot be done
    │   ├── CandidateError             the version is unfit to serve; the old one serves on
    │   ├── BusyError                  another operation on the model is under way
    │   └── AccessDeniedError          whoever asks has not shown that they may
    └── SettingsError              the operator fixes flags, environment or settings file

A message names the subject, what was expected, what came, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "ArtifactError",
    "BusyError",
    "CandidateError",
    "CheckFailedError",
    "DeadlineError",
    "GuardError",
    "HashMismatchError",
    "InputRejectedError",
    "InvalidRequestError",
    "MissingFileError",
    "OperationError",
    "ProbeError",
    "ProfileError",
    "QueueFullError",
    "RequestError",
    "SettingsError",
    "ShuttingDownError",
    "UnavailableError",
    "UncheckableInputError",
    "UnfitModelError",
    "UnknownModelError",
    "UnsafeArrayError",
    "UnsafePathError",
    "UnsupportedRequestError",
    "UpstreamDeadlineError",
    "UpstreamError",
    "UpstreamStatusError",
    "WorkerError",
]


class GuardError(Exception):
    """Base of every error the guard raises on purpose."""


class RequestError(GuardError):
    """The caller must change the request."""


class InvalidRequestError(RequestError):
    """The request is malformed or does not fit the model's declared tensors."""


class UnknownModelError(RequestError):
    """The named model or version is not served here."""


class UnsupportedRequestError(RequestError):
    """The request is well formed but asks for something the guard does not allow."""


class UncheckableInputError(RequestError):
    """The input cannot be checked, and the policy is to fail closed."""


class InputRejectedError(RequestError):
    """At least one row of the request was found to carry a trigger.

    Attributes:
        rows: Indices of the rejected rows within the request.
        scores: Score of each of those rows (negative mean entropy, bits).
    """

    def __init__(self, message: str, *, rows: tuple[int, ...], scores: tuple[float, ...]) -> None:
        super().__init__(message)
        self.rows = rows
        self.scores = scores


class UnavailableError(GuardError):
    """The caller may try again, later or elsewhere."""


class QueueFullError(UnavailableError):
    """The request was shed because the queue holds as much as it may."""


class DeadlineError(UnavailableError):
    """The caller's deadline passed before the answer was ready."""


class ShuttingDownError(UnavailableError):
    """The server no longer accepts work."""


class CheckFailedError(UnavailableError):
    """The model or the check failed on this input, and the policy is to fail closed."""


class UpstreamError(UnavailableError):
    """The model server behind the guard cannot be asked, or broke off."""


class WorkerError(UnavailableError):
    """A worker process cannot be started, is not there, or does not answer; told as if it were busy."""


class UpstreamDeadlineError(DeadlineError):
    """The model server behind the guard did not answer in time."""


class UpstreamStatusError(GuardError):
    """The model server behind the guard answered with a status of its own, which is passed on as it came.

    Attributes:
        code: Name of the gRPC status code, such as ``NOT_FOUND``.
        metadata: Trailing metadata that came with it.
    """

    def __init__(
        self, details: str, *, code: str = "INTERNAL", metadata: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        super().__init__(details)
        self.code = code
        self.metadata = metadata


class ArtifactError(GuardError):
    """Something on disk is not what it must be; the operator fixes it."""


class MissingFileError(ArtifactError):
    """A file that the artifact must hold is not there."""


class HashMismatchError(ArtifactError):
    """A file's SHA-256 is not the one that the manifest lists."""


class UnsafePathError(ArtifactError):
    """A path leads out of the artifact's directory."""


class UnsafeArrayError(ArtifactError):
    """An array file could run code when read."""


class ProbeError(ArtifactError):
    """The loaded model answers the stored images otherwise than when it was calibrated."""


class ProfileError(ArtifactError):
    """A profile or manifest is malformed, or belongs to another model."""


class UnfitModelError(ArtifactError):
    """The model is no image classifier that the guard can serve."""


class OperationError(GuardError):
    """What an operator asked of a running guard cannot be done."""


class CandidateError(OperationError):
    """A version cannot come to serve; whatever served before serves on.

    Attributes:
        its_own: Whether it will fail again until its files change; else the reason lies elsewhere: there was
            no room, or another version was meant.
        reason: Why not, for where it is told besides which version failed; the message if that says no more.
    """

    def __init__(self, message: str, *, its_own: bool = False, reason: str = "") -> None:
        super().__init__(message)
        self.its_own = its_own
        self.reason = reason or message


class BusyError(OperationError):
    """Another operation on the same model is under way."""


class AccessDeniedError(OperationError):
    """The caller has not shown that they may do this."""


class SettingsError(GuardError):
    """A flag, environment variable or settings file is wrong."""
