"""Keeps what each step of a long job gave, so that the same command goes on where it stopped.

A step has a folder ``<out>/steps/NN-name/`` and a *key*: the digest of all that its result depends on, the
keys of the steps before it included. ``step.json`` is written last, with the result and the digest of every
file that the step left; only where key and files are still the same is a step not done again. A folder that
was begun under the same key is left as it is, so that a step which can go on by itself does; one of another
key is emptied.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calibration.errors import OptionError
from calibration.heal.places import PRIVATE, write_text
from calibration.wording import seconds_text

__all__ = ["Done", "Planned", "Row", "Steps", "digest_of_plain"]

State = Literal["done", "resumed", "failed", "not needed"]

_RECORD, _BEGUN, _PARTIAL = "step.json", "begun.json", "partial"


@dataclass(frozen=True)
class Planned:
    """A step to come.

    Attributes:
        name: Of its folder.
        cost: What it takes, in images that go through the network forwards and back, about.
        does: In a few words.
        likely: Whether it is expected to be come to, and counts in the estimate of what is left.
    """

    name: str
    cost: float
    does: str
    likely: bool = True


@dataclass(frozen=True)
class Done:
    """A step that was done.

    Attributes:
        folder: Its own.
        key: Names all that the result depends on.
        result: Plain values.
        seconds: What it took when it was done.
        resumed: Whether that was before this sitting.
    """

    folder: Path
    key: str
    result: Mapping[str, Any]
    seconds: float
    resumed: bool


@dataclass(frozen=True)
class Row:
    """A line of the table of steps."""

    name: str
    does: str
    state: State
    seconds: float | None


class Steps:
    """The steps of one job, in order.

    Args:
        root: Gets a folder for each step.
        plan: All that may be come to, in order.
        say: Is told of each step as it begins and ends.
    """

    def __init__(self, root: Path, plan: tuple[Planned, ...], say: Callable[[str], None]) -> None:
        self.root, self.plan, self._say = root, plan, say
        self.rows: list[Row] = []
        self._spent, self._paid = 0.0, 0.0

    def do(
        self,
        name: str,
        inputs: Mapping[str, Any],
        run: Callable[[Path, str], Mapping[str, Any]],
        *,
        holds: Callable[[Mapping[str, Any]], bool] = lambda result: True,
    ) -> Done:
        """Do a step, unless it is done.

        Args:
            name: One of the plan's.
            inputs: All that the result depends on, as JSON holds it.
            run: Does it in a folder, told the step's key, and returns its result as JSON holds it.
            holds: Tells of a result that is kept whether what it stands for is still there.

        Raises:
            OptionError: If the folder cannot be written.
        """
        place, planned = self._planned(name)
        there = sorted(self.root.glob(f"[0-9][0-9]-{name}"))  # of another plan, under another number
        folder = there[0] if there else self.root / f"{place + 1:02d}-{name}"
        key = digest_of_plain({"step": name, "inputs": inputs})
        head = f"[{place + 1}/{len(self.plan)}] {name}"
        kept = _kept(folder, key)
        if kept is not None and holds(kept.result):
            self._say(f"{head}: resumed, done before in {seconds_text(kept.seconds)}")
            self.rows.append(Row(name, planned.does, "resumed", kept.seconds))
            return kept
        self._say(f"{head}: {planned.does}{self._estimate(place)}")
        _begin(folder, key)
        start = time.perf_counter()
        try:
            result = run(folder, key)
        except Exception:
            self.rows.append(Row(name, planned.does, "failed", time.perf_counter() - start))
            raise
        seconds = time.perf_counter() - start
        self._spent, self._paid = self._spent + seconds, self._paid + planned.cost
        record = {"key": key, "result": result, "seconds": seconds, "files": _digests(folder)}
        write_text(folder / _RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")
        self._say(f"{head}: done in {seconds_text(seconds)}")
        self.rows.append(Row(name, planned.does, "done", seconds))
        return Done(folder, key, result, seconds, resumed=False)

    def table(self) -> tuple[Row, ...]:
        """Return a row for each step of the plan: those that were come to, and those that were not needed."""
        seen = {row.name: row for row in self.rows}
        return tuple(seen.get(one.name, Row(one.name, one.does, "not needed", None)) for one in self.plan)

    def _planned(self, name: str) -> tuple[int, Planned]:
        for place, planned in enumerate(self.plan):
            if planned.name == name:
                return place, planned
        raise ValueError(f"step {name!r} is not in the plan: {', '.join(one.name for one in self.plan)}")

    def _estimate(self, place: int) -> str:
        """Return what is left, by what the steps so far took for what they cost."""
        later = sum(planned.cost for planned in self.plan[place + 1 :] if planned.likely)
        left = self.plan[place].cost + later
        if not self._paid or not left:
            return ""
        return f" (about {seconds_text(left * self._spent / self._paid)} left, if all goes on)"


def digest_of_plain(value: Any) -> str:
    """Return the SHA-256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _kept(folder: Path, key: str) -> Done | None:
    """Return what is kept of a step; None if it is of another key, or a file is not as it was left."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        same = record["key"] == key and record["files"] == _digests(folder)
        done = Done(folder, key, dict(record["result"]), float(record["seconds"]), resumed=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return done if same else None


def _begin(folder: Path, key: str) -> None:
    try:
        (folder / _RECORD).unlink(missing_ok=True)
        begun = folder / _BEGUN
        if not begun.is_file() or begun.read_text() != key:
            if folder.exists():
                shutil.rmtree(folder)
            folder.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            folder.mkdir()
            write_text(begun, key)
    except OSError as error:
        raise OptionError(f"--out: {folder} cannot be written ({error}); choose another folder") from error


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file, what a part of the step may go on from aside."""
    own = {folder / _RECORD, folder / _BEGUN}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in own)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if _PARTIAL not in path.relative_to(folder).parts
    }
