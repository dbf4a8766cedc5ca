"""Values that labels of metrics may take; :mod:`guard.metrics_catalogue` says which label takes which."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = [
    "GRPC_CODES",
    "RPC_METHODS",
    "UNKNOWN",
    "AnsweredBy",
    "CanaryOutcome",
    "DriftSide",
    "DropReason",
    "Finding",
    "Outcome",
    "Recorded",
    "SecondOpinionOutcome",
    "ShedReason",
    "Stage",
    "SwapOutcome",
    "TrialOutcome",
    "UncheckableReason",
    "UpstreamLoad",
    "UpstreamPurpose",
]

UNKNOWN: Final = "unknown"
"""Label value of a model or method that is not known here."""

GRPC_CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""The status codes of gRPC; any other is counted as its own ``UNKNOWN``."""

RPC_METHODS: Final = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
    "Check",
    "Watch",
    "Status",
    "Swap",
    "Rollback",
    "StartCanary",
    "Promote",
    "StopCanary",
)
"""Methods of the inference service, of health and of the admin face; refused ones too, as attempts are worth
seeing."""


class UncheckableReason(StrEnum):
    """Why an input was not checked; ``not_sampled`` where it was to be (setting ``sampling``)."""

    NON_FINITE = "non_finite"
    OUT_OF_RANGE = "out_of_range"
    CHECK_FAILED = "check_failed"
    QUEUE_FULL = "queue_full"
    NOT_SAMPLED = "not_sampled"


class Outcome(StrEnum):
    """What became of an input that was not checked: answered (fail open) or refused."""

    ANSWERED = "answered"
    REFUSED = "refused"


class Stage(StrEnum):
    """Where time goes: ``queue`` and ``total`` once a request, ``device`` once a device call."""

    QUEUE = "queue"
    DEVICE = "device"
    TOTAL = "total"


class ShedReason(StrEnum):
    """Why a request was dropped before its answer was ready."""

    QUEUE_FULL = "queue_full"
    SHUTTING_DOWN = "shutting_down"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"


class DropReason(StrEnum):
    """Why a suspicious input was not kept in quarantine."""

    QUEUE_FULL = "queue_full"
    UNWRITABLE = "unwritable"
    TOO_LARGE = "too_large"


class DriftSide(StrEnum):
    """Which way p-values have moved: lower is more suspicious than at calibration, upper less."""

    LOWER = "lower"
    UPPER = "upper"


class Recorded(StrEnum):
    """What became of a record for the audit log."""

    WRITTEN = "written"
    LOST = "lost"


class SecondOpinionOutcome(StrEnum):
    """Whether a second opinion has the verdict of the check; dropped where there was no time to ask."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    FAILED = "failed"
    DROPPED = "dropped"


class SwapOutcome(StrEnum):
    """What became of a swap or a rollback; failed where the candidate did not come to serve."""

    SWAPPED = "swapped"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


class CanaryOutcome(StrEnum):
    """Why a candidate is not tried any more; all but the first two are limits that it exceeded."""

    PROMOTED = "promoted"
    STOPPED = "stopped"
    ERRORS = "errors"
    LATENCY = "latency"
    REJECTIONS = "rejections"
    DISAGREEMENT = "disagreement"


class TrialOutcome(StrEnum):
    """What became of a request put to a candidate; what it failed on, the current version answered."""

    ANSWERED = "answered"
    FAILED = "failed"


class AnsweredBy(StrEnum):
    """Who answered, while a candidate is tried."""

    CANDIDATE = "candidate"
    CURRENT = "current"


class Finding(StrEnum):
    """What candidate and current version make of the same row; ``same`` where both accept its class."""

    SAME = "same"
    CLASS_DIFFERS = "class_differs"
    REJECTED_BY_CANDIDATE = "rejected_by_candidate"
    REJECTED_BY_CURRENT = "rejected_by_current"
    REJECTED_BY_BOTH = "rejected_by_both"


class UpstreamLoad(StrEnum):
    """How it went when a model's server was asked to load a version."""

    READY = "ready"
    FAILED = "failed"
    LATE = "late"


class UpstreamPurpose(StrEnum):
    """What a model's server is asked for: the answer to a request, or blends for a check."""

    PREDICT = "predict"
    CHECK = "check"
