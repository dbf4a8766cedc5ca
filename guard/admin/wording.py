"""What the operator's commands print: short text for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from guard.control.api import CanaryStatus, ModelStatus, SwapReport, VersionInfo

__all__ = ["as_json", "canary_lines", "status_lines", "swap_lines"]

_HEAD = (
    "MODEL",
    "POLICY",
    "VERSION",
    "SINCE",
    "BOUNDARY",
    "CERTIFIED FRR",
    "ARTIFACT",
    "BEFORE",
    "AVAILABLE",
)
_SHORT_DIGEST = 12


def as_json(told: Any) -> str:
    """Return a dataclass, or several, as indented JSON; numbers that JSON has no word for become null."""
    several = isinstance(told, (list, tuple))
    plain = [asdict(one) for one in told] if several else asdict(told)
    return json.dumps(_finite(plain), indent=2, sort_keys=True, allow_nan=False)


def status_lines(statuses: Sequence[ModelStatus]) -> Iterator[str]:
    """Yield a table with a line for each model, and below it what deserves attention."""
    rows = [_HEAD, *(_row(status) for status in statuses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for status in statuses:
        if status.current is not None:
            yield from _opinion_lines(status.name, status.current)
        if status.canary is not None:
            yield from _canary_in_status(status.name, status.canary)
        if status.doing:
            yield _printable(f"{status.name}: just now {status.doing}")
        for failure in status.failures:
            yield _printable(
                f"{status.name}: version {failure.version} did not come to serve "
                f"({_time(failure.at)}): {failure.error}"
            )
        if status.note:
            yield _printable(f"{status.name}: {status.note}")


def _opinion_lines(model: str, now: VersionInfo) -> Iterator[str]:
    asked = [one.name for one in now.second_opinions if not one.why_off]
    if asked:
        yield _printable(f"{model}: second opinions are asked of {', '.join(asked)}")
    for one in now.second_opinions:
        if one.why_off:
            yield _printable(f"{model}: no second opinion of {one.name}: {one.why_off}")


def _canary_in_status(model: str, canary: CanaryStatus) -> Iterator[str]:
    """Yield what is known of a canary that runs; of one that is over how it ended, which is enough here."""
    if canary.running:
        yield from canary_lines(model, canary)
    else:
        yield f"{next(canary_lines(model, canary))}; `guard canary status` has its figures"


def canary_lines(model: str, canary: CanaryStatus) -> Iterator[str]:
    """Yield what is known of a canary."""
    version, share = canary.candidate.version, f"{canary.share:.4g} of the requests"
    if canary.running:
        yield _printable(f"{model}: version {version} is tried on {share} since {_time(canary.started_at)}")
    else:
        yield _printable(f"{model}: version {version} was tried on {share}: {canary.outcome}")
    for name, value in sorted(canary.figures.items()):
        yield _printable(f"  {name:<32} {value:.6g}")


def swap_lines(report: SwapReport) -> Iterator[str]:
    """Yield what a swap did."""
    old, new = report.old.version, report.new.version
    if report.changed:
        yield _printable(
            f"{report.model}: version {new} is served, in place of {old} ({report.seconds:.2f} s)"
        )
    else:
        yield _printable(f"{report.model}: version {new} is served already; nothing was changed")
    yield f"  artifact  SHA-256 {_printable(report.new.digest)}"
    yield f"  boundary  {_boundary(report.new)}, false rejections {_promise(report.new.certified_frr)}"
    if report.new.block_boundary is not None:
        value = _value(report.new, report.new.block_boundary)
        yield f"  refused   {value}, false rejections {_promise(report.new.block_certified_frr)}"
    for step in report.steps:
        yield _printable(f"  done      {step.words} ({step.seconds:.2f} s)")
    if report.note:
        yield _printable(f"  note      {report.note}")


def _row(status: ModelStatus) -> tuple[str, ...]:
    now = status.current
    of_version = ("-",) * 5 if now is None else _cells(now)
    listed = (", ".join(status.previous) or "-", ", ".join(status.available) or "-")
    return tuple(map(_printable, (status.name, status.policy, *of_version, *listed)))


def _cells(now: VersionInfo) -> tuple[str, ...]:
    boundary, frr = _boundary(now), _rate(now.certified_frr)
    if now.block_boundary is not None:
        boundary += f", {_value(now, now.block_boundary)}"
        frr += f", {_rate(now.block_certified_frr)}"
    return (now.version, _time(now.loaded_at), boundary, frr, now.digest[:_SHORT_DIGEST])


def _rate(certified: float | None) -> str:
    return "-" if certified is None else f"{certified:.4%}"


def _boundary(info: VersionInfo) -> str:
    return _value(info, info.boundary if info.detector == "fused" else -info.boundary_bits)


def _value(info: VersionInfo, score: float) -> str:
    return f"score {score:.4f}" if info.detector == "fused" else f"{-score:.4f} bits"


def _promise(certified: float | None) -> str:
    return "not guaranteed" if certified is None else f"{certified:.4%} certified"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _printable(text: str) -> str:
    """Return text that cannot move the cursor: names and reasons come from elsewhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _finite(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: _finite(value) for key, value in told.items()}
    if isinstance(told, (list, tuple)):
        return [_finite(value) for value in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told
