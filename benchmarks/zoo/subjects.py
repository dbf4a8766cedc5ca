"""Reading the zoo: a subject's model, trigger and record, each checked against its hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.attacks.base import Attack
from calibration.trigger import load_trigger

__all__ = ["MODELS", "RECORDS", "Subject", "built", "found", "load_subject", "names", "verify"]

MODELS = Path(__file__).with_name("models")
RECORDS = Path(__file__).parent.parent / "results" / "zoo"


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network and how to attack it.

    Args:
        name: Its name in the zoo.
        model: Its ONNX file: ``images`` float32 (n, c, h, w) in [0, 1] to ``logits`` (n, k).
        attack: The attack it was poisoned with, to stamp with; None for a clean network.
        record: How it was made and what it does on images it never saw.
    """

    name: str
    model: Path
    attack: Attack | None
    record: dict[str, Any]


def found() -> list[str]:
    """Return every subject that has a record or files, whether or not they go together."""
    recorded = {path.stem for path in RECORDS.glob("*.json")}
    return sorted(recorded | {path.name for path in MODELS.iterdir() if path.is_dir()})


def names() -> list[str]:
    """Return the subjects that have been made, clean ones first, each group by name."""
    found = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    return [record["name"] for record in sorted(found, key=lambda record: record["attack"] is not None)]


def load_subject(name: str) -> Subject:
    """Return a subject of the zoo.

    Raises:
        ValueError: If it has not been made, or a file is not as its record has it.
    """
    complaint = verify(name)
    if complaint:
        raise ValueError(f"zoo subject {name!r}: {complaint}; there are {', '.join(names()) or 'none'}")
    folder, record = MODELS / name, _record(name)
    attack = None if record["attack"] is None else load_trigger(folder)
    return Subject(name, folder / "model.onnx", attack, record)


def built(name: str) -> bool:
    """Tell whether a subject is there and as recorded."""
    return not verify(name)


def verify(name: str) -> str:
    """Return what is wrong with a subject's files; nothing if they are those of its record."""
    if not (RECORDS / f"{name}.json").exists():
        return "expected a record, got none"
    for file, expected in _record(name)["files"].items():
        path = MODELS / name / file
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
        if digest != expected["sha256"]:
            return f"{file}: expected sha256 {expected['sha256']}, got {digest}"
    others = {path.name for path in (MODELS / name).iterdir()} - set(_record(name)["files"])
    return f"{min(others)}: expected in the record, got a file that is not" if others else ""


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    return record
