"""What an operator may ask of a running guard, and what they are told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = [
    "Agreement",
    "CanaryStatus",
    "Control",
    "Failure",
    "ModelStatus",
    "OpinionInfo",
    "Step",
    "SwapReport",
    "VersionInfo",
    "at_once",
]


@dataclass(frozen=True)
class OpinionInfo:
    """A capability that was calibrated to be asked beside the check.

    Attributes:
        name: Its name.
        why_off: Why it is not asked; empty where it is.
    """

    name: str
    why_off: str = ""


@dataclass(frozen=True)
class VersionInfo:
    """A version that is loaded.

    Attributes:
        version: Name of its directory.
        digest: SHA-256 of its manifest, which stands for the whole artifact.
        model_sha256: SHA-256 of ``model.onnx``.
        boundary_bits: STRIP's: a mean entropy below it is suspicious, where STRIP decides.
        certified_frr: Bound of the false-rejection rate; None where calibration gave none.
        loaded_at: Seconds since the epoch.
        detector: Which score decides: ``strip`` or ``fused``.
        boundary: Of that score; what is above it is suspicious.
        block_boundary: A higher one, which alone refuses under ``enforce``; None where there are no two.
        block_certified_frr: Bound of the share of clean inputs beyond that; None where there is none.
        second_opinions: Capabilities that were calibrated to be asked beside the check.
    """

    version: str
    digest: str
    model_sha256: str
    boundary_bits: float
    certified_frr: float | None
    loaded_at: float
    detector: str = "strip"
    boundary: float = 0.0
    block_boundary: float | None = None
    block_certified_frr: float | None = None
    second_opinions: tuple[OpinionInfo, ...] = ()


Agreement = Callable[[VersionInfo], Awaitable[None]]
"""Asked of a version that could take over, before anything is changed; raises where it is not to."""


async def at_once(candidate: VersionInfo) -> None:
    """Agree to every version: there is nobody else who would have to take it over too."""


@dataclass(frozen=True)
class Failure:
    """A candidate that did not come to serve.

    Attributes:
        version: Asked for.
        at: Seconds since the epoch.
        error: Why not, in one line.
    """

    version: str
    at: float
    error: str


@dataclass(frozen=True)
class CanaryStatus:
    """A candidate on a share of the traffic.

    Attributes:
        candidate: The version that is tried.
        share: Share of the requests that it answers, in (0, 1].
        started_at: Seconds since the epoch.
        running: Whether it still answers any.
        outcome: Why it ended: ``promoted``, ``stopped`` or what it was rolled back for; empty while it runs.
        figures: What has been counted and measured, by name.
    """

    candidate: VersionInfo
    share: float
    started_at: float
    running: bool
    outcome: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class ModelStatus:
    """What is known of one model.

    Attributes:
        name: It is served under.
        policy: What is done with suspicious inputs.
        current: What is served now; None once it is being unloaded.
        previous: Versions served before, the latest first; a rollback goes to the first.
        available: All versions in the repository, ascending.
        canary: The candidate being tried, or the last one that was; None if there was none.
        failures: Versions there that failed and did not serve since, at the start or later, in that order.
        note: Why ``available`` may not be what is there now; empty if it is.
        doing: What an operation on it is doing just now; empty if nothing.
    """

    name: str
    policy: str
    current: VersionInfo | None
    previous: tuple[str, ...]
    available: tuple[str, ...]
    canary: CanaryStatus | None
    failures: tuple[Failure, ...]
    note: str = ""
    doing: str = ""


@dataclass(frozen=True)
class Step:
    """A part of an operation.

    Attributes:
        words: What was done.
        seconds: How long that took.
    """

    words: str
    seconds: float


@dataclass(frozen=True)
class SwapReport:
    """A swap that was made.

    Attributes:
        model: Its name.
        old: What was served until then.
        new: What is served since.
        seconds: From the call to the switch: reading, verifying, loading, warming up, probing.
        changed: False if that version was served already.
        note: What whoever asked should know besides; empty if there is nothing.
        steps: What was done with the model server, in front of one.
    """

    model: str
    old: VersionInfo
    new: VersionInfo
    seconds: float
    changed: bool
    note: str = ""
    steps: tuple[Step, ...] = ()


@runtime_checkable
class Control(Protocol):
    """The operations behind ``guard.admin.v1``; each on the event loop, one at a time for a model.

    ``actor`` says who asked, for the audit log. All raise :class:`~guard.errors.UnknownModelError` for a
    model that is not served, :class:`~guard.errors.BusyError` while another operation on the model runs, and
    :class:`~guard.errors.CandidateError` where a version cannot come to serve, in which case the old one
    serves on.
    """

    async def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what is known of one model, or of all; soon, even where the repository's disk hangs."""
        ...

    async def swap(self, model: str, version: str = "", *, digest: str = "", actor: str = "") -> SwapReport:
        """Serve a version, the highest one if none is named; only with the given digest, if one is given."""
        ...

    async def rollback(self, model: str, *, actor: str = "") -> SwapReport:
        """Serve the version that was served before."""
        ...

    async def start_canary(self, model: str, version: str, *, share: float, actor: str = "") -> CanaryStatus:
        """Let a candidate answer a share of the requests, and watch it."""
        ...

    async def promote(self, model: str, *, actor: str = "") -> SwapReport:
        """Serve the candidate that is being tried."""
        ...

    async def stop_canary(self, model: str, *, actor: str = "") -> CanaryStatus:
        """Take the candidate off the traffic."""
        ...
