"""One repair after the other: made, judged, and kept as two steps each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calibration.heal.gates import Measure, judge
from calibration.heal.healed import Attempt
from calibration.heal.judging import Bar, measure_repair
from calibration.heal.parts import LEARN
from calibration.heal.steps import Done, Steps
from calibration.repair.base import options_of
from calibration.repair.job import repair_model
from calibration.repair.options import MODEL, RepairOptions
from guard.artifact.manifest import sha256_of
from guard.errors import GuardError

__all__ = ["Trial"]


@dataclass(frozen=True, eq=False)
class Trial:
    """What every repair is made from, and judged by.

    Attributes:
        bar: What it is held against.
        part: The step that parted the images.
        depends: All that a repair depends on, whatever the method.
        steps: Of the job.
    """

    bar: Bar
    part: Done
    depends: Mapping[str, Any]
    steps: Steps

    def attempt(self, method: str) -> Attempt:
        """Repair and judge; what goes wrong with one repair leaves the others to be tried.

        Raises:
            OptionError: If an option does not fit the repair.
        """
        asked = self._asked(method)
        plain = options_of(asked.make())
        triggers = [_folder_digest(folder) for folder in self.bar.options.triggers]
        depends = {**self.depends, "triggers": triggers}

        def mend(folder: Path, key: str) -> dict[str, Any]:
            del key
            (folder / MODEL).unlink(missing_ok=True)  # of a sitting that was broken off before its report
            repaired, *_ = repair_model(replace(asked, out=folder))
            return {"sha256": repaired.sha256}

        def measure(folder: Path, key: str) -> dict[str, Any]:
            del key
            measures = measure_repair(repaired.folder / MODEL, self.bar, folder)
            return {"measures": [asdict(_finite(one)) for one in measures]}

        try:
            repaired = self.steps.do(
                f"repair-{method}", {**depends, "method": method, "options": plain}, mend
            )
            sha256 = repaired.result["sha256"]
            judged = self.steps.do(
                f"judge-{method}", {**depends, "repaired": sha256, "by": self._judged_by()}, measure
            )
        except GuardError as error:
            return Attempt(method, str(error), plain)
        measures = [Measure(**one) for one in judged.result["measures"]]
        judgement = judge(self.bar.options.gates, measures, self.bar.options.required)
        return Attempt(method, "", plain, sha256, judgement, repaired.folder / MODEL)

    def _asked(self, method: str) -> RepairOptions:
        options, bar = self.bar.options, self.bar
        return RepairOptions(
            model=str(bar.subject.file),
            out=self.steps.root / f"repair-{method}",
            method=method,
            settings=options.repair.get(method, {}),
            data=self.part.folder / LEARN,
            scan=bar.evidence.scan,
            triggers=options.triggers,
            transform=bar.transform,
            layout=bar.subject.layout,
            seed=options.seed,
            threads=options.threads,
            device=options.device,
            quiet=options.quiet,
        )

    def _judged_by(self) -> dict[str, Any]:
        """Return what a judgement depends on, beside the repaired model."""
        held, options = self.bar.evidence.quarantined, self.bar.options
        return {
            "suspects": held and [held.suspects.digest, held.label],
            "rescan": options.rescan and [self.bar.evidence.scanners, options.images],
            "settings": json.loads(json.dumps({name: dict(table) for name, table in options.scan.items()})),
        }


def _finite(measure: Measure) -> Measure:
    """Return a measure whose numbers that are none are not there."""
    numbers = ("value", "low", "high", "before")
    lost = {name: None for name in numbers if not math.isfinite(getattr(measure, name) or 0.0)}
    return replace(measure, **lost) if lost else measure  # type: ignore[arg-type]


def _folder_digest(folder: Path) -> list[str]:
    return [sha256_of(path.read_bytes()) for path in sorted(folder.glob("trigger.*"))]
