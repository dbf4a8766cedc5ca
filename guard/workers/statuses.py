"""What all workers say of a model, as one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from guard.control.api import CanaryStatus, Failure, ModelStatus, SwapReport
from guard.control.failures import Failures

__all__ = ["one_canary", "one_report", "one_status"]

_MEAN: Final = "mean_entropy_difference_bits"
_NOT_ADDED: Final = ("_seconds", "max_rejection_rate")
_STOPPED: Final = ("", "stopped")


def one_status(said: Mapping[str, ModelStatus]) -> ModelStatus:
    """Return what several workers say of one model, told apart where they differ.

    Args:
        said: By name of worker; not empty.
    """
    first, *_ = statuses = list(said.values())
    canaries = [status.canary for status in statuses if status.canary]
    return replace(
        first,
        canary=one_canary(canaries) if canaries else None,
        failures=_failures(statuses),
        note="; ".join(dict.fromkeys(words for words in (first.note, _difference(said)) if words)),
    )


def one_canary(canaries: Sequence[CanaryStatus]) -> CanaryStatus:
    """Return what several workers say of a candidate; counts are added up, and latencies are the longest.

    Why it ended is what that worker says in which it exceeded a limit; in the others it was stopped for that.
    """
    latest = max(canaries, key=lambda canary: canary.started_at).candidate.digest
    same = [canary for canary in canaries if canary.candidate.digest == latest]
    outcomes = [canary.outcome for canary in same]
    return replace(
        same[0],
        started_at=min(canary.started_at for canary in same),
        running=all(canary.running for canary in same),
        outcome=next((words for words in outcomes if words not in _STOPPED), max(outcomes)),
        figures=_figures([canary.figures for canary in same]),
    )


def one_report(reports: Sequence[SwapReport]) -> SwapReport:
    """Return what several workers say of a change: done when the last one had done it."""
    changed = [report for report in reports if report.changed] or list(reports)
    return replace(
        changed[0],
        seconds=max(report.seconds for report in reports),
        note="; ".join(dict.fromkeys(report.note for report in reports if report.note)),
    )


def _failures(statuses: Sequence[ModelStatus]) -> tuple[Failure, ...]:
    """Return what failed in any worker, each version as it failed last."""
    by_time = sorted((one for status in statuses for one in status.failures), key=lambda failure: failure.at)
    return Failures(by_time).all


def _figures(said: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for figures in said for name in figures)
    return {name: _figure(name, said) for name in names}


def _figure(name: str, said: Sequence[Mapping[str, float]]) -> float:
    if name == _MEAN:
        rows = sum(figures.get("rows", 0.0) for figures in said)
        return sum(figures.get(name, 0.0) * figures.get("rows", 0.0) for figures in said) / max(1.0, rows)
    values = [figures[name] for figures in said if name in figures]
    return max(values) if name.endswith(_NOT_ADDED) else sum(values)


def _difference(said: Mapping[str, ModelStatus]) -> str:
    versions = {name: status.current.version if status.current else "none" for name, status in said.items()}
    if len(set(versions.values())) == 1:
        return ""
    return f"workers differ: {', '.join(f'{name} serves {version}' for name, version in versions.items())}"
