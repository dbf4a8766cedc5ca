"""The records of all runs, and the cells of a table that they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

__all__ = ["NONE", "Records", "cell", "percent", "read_records", "spread", "table"]

NONE = "–"


@dataclass(frozen=True)
class Records:
    """All records, by victim, method and number of clean images; several seeds of each."""

    records: tuple[dict[str, Any], ...]

    def of(self, victim: str, method: str, images: int) -> list[dict[str, Any]]:
        """Return what came of one run, seed by seed; nothing of runs that were cut.

        A method that learns from no clean image has its record at any number of them.
        """
        return [
            one
            for one in self.records
            if (one["victim"], name_of(one)) == (victim, method)
            and one["images"] in {images, 0}
            and "missing" not in one
        ]

    def mean(self, victim: str, method: str, images: int, *path: str) -> float | None:
        """Return a figure's mean over the seeds; None without a record, or where it has no such figure."""
        found = [_dig(one, path) for one in self.of(victim, method, images)]
        values = [value for value in found if value is not None]
        return mean(values) if values else None

    def over(self, victims: Sequence[str], method: str, images: int, *path: str) -> float | None:
        """Return a figure's mean over victims; None unless all have it."""
        found = [self.mean(victim, method, images, *path) for victim in victims]
        values = [value for value in found if value is not None]
        return mean(values) if len(values) == len(found) else None

    def by_seed(self, victims: Sequence[str], method: str, images: int, *path: str) -> list[float]:
        """Return a figure's mean over victims, once for each seed that all of them have."""
        of_each = [
            {one["seed"]: _dig(one, path) for one in self.of(victim, method, images)} for victim in victims
        ]
        seeds = sorted(set.intersection(*map(set, of_each)))
        rows = [[found[seed] for found in of_each] for seed in seeds]
        return [mean(value for value in row if value is not None) for row in rows if None not in row]

    def before(self, victim: str, name: str) -> float | None:
        """Return a figure of the victim as it was."""
        return next((_dig(one, ("before", name)) for one in self._measured(victim)), None)

    def methods(self) -> list[str]:
        """Return the names of all methods that there are records of."""
        return sorted({name_of(one) for one in self.records})

    def missing(self) -> list[dict[str, Any]]:
        """Return the records of runs that came to nothing."""
        return [one for one in self.records if "missing" in one]

    def _measured(self, victim: str) -> list[dict[str, Any]]:
        return [one for one in self.records if one["victim"] == victim and "before" in one]


def read_records(folder: Path) -> Records:
    """Return all records in a folder and those in it."""
    return Records(tuple(json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))))


def name_of(record: dict[str, Any]) -> str:
    """Return the name of a record's method, its variant and all."""
    return f"{record['method']}-{record['variant']}" if record["variant"] else str(record["method"])


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return NONE if share is None else f"{100 * share:.2f}"


def cell(asr: float | None, acc: float | None) -> str:
    """Return attack success and accuracy in percent."""
    return NONE if asr is None or acc is None else f"{percent(asr)} / {percent(acc)}"


def spread(values: Sequence[float]) -> str:
    """Return the mean of shares in percent and, of several, their standard deviation."""
    if not values:
        return NONE
    return percent(mean(values)) + (f" ± {percent(stdev(values))}" if len(values) > 1 else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _dig(record: Any, path: Sequence[str]) -> float | None:
    for name in path:
        if record is None or name not in record:
            return None
        record = record[name]
    return None if record is None else float(record)
