"""``guard.admin.v1`` messages into what the control room takes and says, and back. Pure, both ways.

The client's side is here as well, so that the commands and the server cannot come to differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from guard.control.api import CanaryStatus, Failure, ModelStatus, OpinionInfo, Step, SwapReport, VersionInfo
from guard.errors import InvalidRequestError
from guard.rpc.pb import guard_admin_pb2 as pb

__all__ = [
    "checked_digest",
    "checked_share",
    "checked_version",
    "decode_canary",
    "decode_report",
    "decode_statuses",
    "decode_version",
    "encode_canary",
    "encode_report",
    "encode_statuses",
    "encode_version",
]

_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def checked_version(version: str) -> str:
    """Return a version as it came; empty stands for the highest.

    Raises:
        InvalidRequestError: If it is not the name of a version directory, a path for instance.
    """
    if version and not _VERSION.fullmatch(version):
        raise InvalidRequestError(
            f"version {version!r}: expected the number of a version directory, such as '2'"
        )
    return version


def checked_digest(digest: str) -> str:
    """Return a digest in lower case; empty stands for any.

    Raises:
        InvalidRequestError: If it is no SHA-256 in hexadecimal.
    """
    lower = digest.lower()
    if lower and not _DIGEST.fullmatch(lower):
        raise InvalidRequestError(
            f"digest {digest!r}: expected a SHA-256 of 64 hexadecimal digits; `guard verify` shows it"
        )
    return lower


def checked_share(share: float) -> float:
    """Return the share of a canary.

    Raises:
        InvalidRequestError: If it is no share of anything.
    """
    if not 0.0 < share <= 1.0:
        raise InvalidRequestError(f"share: expected a number above 0 and at most 1, got {share:g}")
    return share


def encode_statuses(statuses: Iterable[ModelStatus]) -> pb.StatusResponse:
    """Return the answer to Status."""
    return pb.StatusResponse(models=[_encode_status(status) for status in statuses])


def encode_report(report: SwapReport) -> pb.SwapReport:
    """Return the answer to Swap, Rollback and Promote."""
    return pb.SwapReport(
        model=report.model,
        old=encode_version(report.old),
        new=encode_version(report.new),
        seconds=report.seconds,
        changed=report.changed,
        note=_as_text(report.note),
        steps=[pb.Step(words=_as_text(step.words), seconds=step.seconds) for step in report.steps],
    )


def encode_canary(canary: CanaryStatus) -> pb.CanaryStatus:
    """Return the answer to StartCanary and StopCanary."""
    return pb.CanaryStatus(
        candidate=encode_version(canary.candidate),
        share=canary.share,
        started_at=canary.started_at,
        running=canary.running,
        outcome=_as_text(canary.outcome),
        figures=canary.figures,
    )


def decode_statuses(response: pb.StatusResponse) -> tuple[ModelStatus, ...]:
    """Return what :func:`encode_statuses` was given."""
    return tuple(_decode_status(status) for status in response.models)


def decode_report(report: pb.SwapReport) -> SwapReport:
    """Return what :func:`encode_report` was given."""
    return SwapReport(
        model=report.model,
        old=decode_version(report.old),
        new=decode_version(report.new),
        seconds=report.seconds,
        changed=report.changed,
        note=report.note,
        steps=tuple(Step(step.words, step.seconds) for step in report.steps),
    )


def decode_canary(canary: pb.CanaryStatus) -> CanaryStatus:
    """Return what :func:`encode_canary` was given."""
    return CanaryStatus(
        candidate=decode_version(canary.candidate),
        share=canary.share,
        started_at=canary.started_at,
        running=canary.running,
        outcome=canary.outcome,
        figures=dict(canary.figures),
    )


def _encode_status(status: ModelStatus) -> pb.ModelStatus:
    return pb.ModelStatus(
        name=status.name,
        policy=status.policy,
        current=None if status.current is None else encode_version(status.current),
        previous=status.previous,
        available=status.available,
        canary=None if status.canary is None else encode_canary(status.canary),
        failures=[
            pb.Failure(version=failure.version, at=failure.at, error=_as_text(failure.error))
            for failure in status.failures
        ],
        note=_as_text(status.note),
        doing=_as_text(status.doing),
    )


def encode_version(info: VersionInfo) -> pb.VersionInfo:
    """Return a version that is loaded, as it travels."""
    return pb.VersionInfo(
        version=info.version,
        digest=info.digest,
        model_sha256=info.model_sha256,
        boundary_bits=info.boundary_bits,
        certified_frr=info.certified_frr,
        loaded_at=info.loaded_at,
        detector=info.detector,
        boundary=info.boundary,
        block_boundary=info.block_boundary,
        block_certified_frr=info.block_certified_frr,
        second_opinions=[
            pb.SecondOpinion(name=one.name, why_off=_as_text(one.why_off)) for one in info.second_opinions
        ],
    )


def _decode_status(status: pb.ModelStatus) -> ModelStatus:
    return ModelStatus(
        name=status.name,
        policy=status.policy,
        current=decode_version(status.current) if status.HasField("current") else None,
        previous=tuple(status.previous),
        available=tuple(status.available),
        canary=decode_canary(status.canary) if status.HasField("canary") else None,
        failures=tuple(Failure(failure.version, failure.at, failure.error) for failure in status.failures),
        note=status.note,
        doing=status.doing,
    )


def decode_version(info: pb.VersionInfo) -> VersionInfo:
    """Return what :func:`encode_version` was given."""
    return VersionInfo(
        version=info.version,
        digest=info.digest,
        model_sha256=info.model_sha256,
        boundary_bits=info.boundary_bits,
        certified_frr=info.certified_frr if info.HasField("certified_frr") else None,
        loaded_at=info.loaded_at,
        detector=info.detector,
        boundary=info.boundary,
        block_boundary=info.block_boundary if info.HasField("block_boundary") else None,
        block_certified_frr=info.block_certified_frr if info.HasField("block_certified_frr") else None,
        second_opinions=tuple(OpinionInfo(one.name, one.why_off) for one in info.second_opinions),
    )


def _as_text(words: str) -> str:
    """Return words that protobuf takes: names of files need not be Unicode."""
    return words.encode(errors="backslashreplace").decode()
