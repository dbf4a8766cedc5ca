"""A healing as plain values: the report for programs, and the lineage that goes with the new version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from calibration.heal.gates import Judgement
from calibration.heal.healed import Attempt, Healed

__all__ = ["FORMAT", "lineage_of", "to_record"]

FORMAT: Final = 1


def lineage_of(healed: Healed, chosen: Attempt, key: str, work: str) -> dict[str, Any]:
    """Return what an operator wants to know of a version: what it was, what was done, what it showed.

    Args:
        healed: So far.
        chosen: The repair that is published.
        key: Of the step that publishes.
        work: Name of the job's folder.
    """
    whole = to_record(healed)
    names = (
        "format",
        "original",
        "data",
        "scan",
        "suspects",
        "seed",
        "machine",
        "versions",
        "started",
        "notes",
    )
    tried = {attempt.method: attempt.why_not or _verdict(attempt) for attempt in healed.attempts}
    lineage = {
        **{name: whole[name] for name in names},
        "key": key,
        "work": work,
        "method": chosen.method,
        "options": dict(chosen.options),
        "sha256": chosen.sha256,
        "gates": _gates(chosen.judgement),
        "tried": tried,
    }
    placeless: dict[str, Any] = _placeless(lineage, _places(healed))
    return placeless


def to_record(healed: Healed) -> dict[str, Any]:
    """Return everything that was done as plain values, format 1; numbers that are none become null."""
    subject, looked = healed.subject, healed.looked
    record = {
        "format": FORMAT,
        "ending": healed.ending,
        "exit_code": healed.exit_code,
        "original": {
            "model_sha256": subject.sha256,
            "artifact_sha256": subject.artifact_sha256,
            "version": subject.version,
            "name": subject.profile.model_name if subject.profile else subject.file.name,
        },
        "data": {"sha256": healed.data_sha256, **healed.parts},
        "scan": asdict(looked),
        "suspects": healed.suspects,
        "attempts": [
            {
                "method": attempt.method,
                "passed": attempt.passed,
                "why_not": attempt.why_not,
                "options": dict(attempt.options),
                "sha256": attempt.sha256,
                "gates": _gates(attempt.judgement),
                "failures": list(attempt.judgement.failures) if attempt.judgement else [],
            }
            for attempt in healed.attempts
        ],
        "published": healed.artifact
        and {
            "artifact": str(healed.artifact),
            "sha256": healed.artifact_sha256,
            "method": healed.chosen and healed.chosen.method,
            "certified_frr": healed.frr,
        },
        "check": asdict(subject.check),
        "limits": asdict(healed.options.gates),
        "steps": [asdict(row) for row in healed.rows],
        "notes": list(healed.notes),
        "seed": healed.options.seed,
        "machine": dict(healed.machine),
        "versions": dict(healed.versions),
        "started": healed.started,
        "seconds": healed.seconds,
    }
    plain: dict[str, Any] = _plain(record)
    return plain


def _verdict(attempt: Attempt) -> str:
    return "passed" if attempt.passed else "; ".join(attempt.judgement.failures if attempt.judgement else ())


def _gates(judgement: Judgement | None) -> dict[str, Any] | None:
    if judgement is None:
        return None
    return {
        one.name: {"limit": one.limit, "verdict": one.verdict, **_without_gate(asdict(one.measure))}
        for one in judgement.results
    }


def _without_gate(measure: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in measure.items() if name != "gate"}


def _places(healed: Healed) -> list[Path]:
    """Return where things lie on this machine, which whoever gets the new version need not know."""
    options, subject = healed.options, healed.subject
    given = (options.out, options.data, options.labels, options.test_data, options.test_labels)
    paths = [*given, options.suspects, *options.triggers, subject.file, subject.publish]
    places = {place for path in paths if path is not None for place in (path, path.resolve())}
    return sorted((place for place in places if place.is_absolute()), key=lambda place: -len(str(place)))


def _placeless(value: Any, places: Sequence[Path]) -> Any:
    """Return plain values in whose texts the last part stands for each whole path."""
    if isinstance(value, str):
        for place in places:
            value = value.replace(str(place), place.name)
        return value
    if isinstance(value, Mapping):
        return {name: _placeless(part, places) for name, part in value.items()}
    return [_placeless(part, places) for part in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
