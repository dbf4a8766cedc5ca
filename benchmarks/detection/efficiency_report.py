"""What the guarded path's efficiency came to, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["efficiency_table", "least_efficiency"]

FILE = "efficiency"


def least_efficiency(folder: Path) -> tuple[float, float] | None:
    """Return the lowest efficiency measured, by the clock and by processor time; None if none was."""
    record = _read(folder)
    if record is None:
        return None
    by_clock, by_processor = (
        min(run[name] for run in record["runs"]) for name in ("efficiency", "by_processor")
    )
    return by_clock, by_processor


def efficiency_table(folder: Path) -> list[str]:
    """Return the section of the page; empty if nothing was measured."""
    record = _read(folder)
    if record is None:
        return []
    lines = [
        "| network | detector | bare images/s | checked images/s | evaluations an image | by the clock "
        "| by processor time | server ms an evaluation | bare ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(run) for run in record["runs"]]
    return ["## Efficiency of the guarded path", record["about"], "\n".join(lines)]


def _line(run: dict[str, Any]) -> str:
    cells = [
        run["model"],
        run["detector"],
        f"{run['bare']:.0f}",
        f"{run['checked']:.0f}",
        f"{run['passes']:.2f}",
    ]
    cells += [f"{run[name]:.2f}" for name in ("efficiency", "by_processor", "server_ms", "bare_ms")]
    return f"| {' | '.join(cells)} |"


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder.with_name(f"{folder.name}_{FILE}.json")
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record
