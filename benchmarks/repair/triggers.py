"""The trigger that an unlearning repair is given: the attack's own, or one that a scan reversed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.repair.claims import claimed
from benchmarks.repair.methods import Method
from benchmarks.repair.victims import Victim
from calibration.attacks.base import Attack
from calibration.labelled import Labelled
from calibration.repair.base import Supplies
from calibration.scan.base import Bench, ScanReport
from calibration.scan.executor import LocalExecutor
from calibration.scan.logits import Logits
from calibration.scan.table import SCANNERS
from calibration.trainable import load_trainable
from calibration.trigger import load_trigger, save_trigger

__all__ = ["Given", "bench_of", "triggers_for"]

SCANNER = "neural_cleanse"
SEARCHED, HELD = 500, 1000
ABOUT = "scan.json"


@dataclass(frozen=True, eq=False)
class Given:
    """Triggers, and what is to be said of them in the record."""

    triggers: tuple[Attack, ...] = ()
    about: dict[str, Any] | None = None


def triggers_for(method: Method, victim: Victim, supplies: Supplies, seed: int, cache: Path) -> Given:
    """Return what a method is to know of the backdoor.

    Args:
        method: Says where its trigger comes from.
        victim: To be repaired.
        supplies: The clean images, on which the scan searches.
        seed: Of the scan.
        cache: Where reversed triggers are kept.
    """
    if method.trigger is None:
        return Given()
    if method.trigger == "original":
        return Given((victim.attack,))
    images = len(supplies.train) + len(supplies.held)
    folder = cache / "triggers" / f"{victim.subject.name}-{images}-{seed}"
    with claimed(folder.with_suffix(".lock"), wait=True):
        if not (folder / ABOUT).exists():
            _reverse(victim, supplies, seed, folder)
    about = json.loads((folder / ABOUT).read_text())
    return Given(tuple(load_trigger(folder / name) for name in about["folders"]), about)


def _reverse(victim: Victim, supplies: Supplies, seed: int, folder: Path) -> None:
    """Scan the victim; keep the triggers of flagged labels, else that of the most suspicious one."""
    bench = bench_of(victim, supplies, seed)
    started = time.process_time()
    report = SCANNERS[SCANNER].make().scan(bench, seed=seed, executor=LocalExecutor(bench))
    seconds = time.process_time() - started
    chosen = _chosen(report)
    found = [trigger for trigger in report.triggers if trigger.finding in chosen]
    for trigger in found:
        save_trigger(trigger.attack, folder / trigger.finding)
    about = {
        "scanner": SCANNER,
        "verdict": report.verdict,
        "flagged": [finding.name for finding in report.flagged],
        "searched": len(bench.clean),
        "processor_seconds": seconds,
        "folders": [trigger.finding for trigger in found],
        "asr": [trigger.asr for trigger in found],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def bench_of(victim: Victim, supplies: Supplies, seed: int) -> Bench:
    """Return what a scan works on: the victim, images to search on, and others to judge on."""
    trainable = load_trainable(victim.subject.model)
    searched = min(SEARCHED, len(supplies.train) // 2)
    rows = torch.randperm(len(supplies.train), generator=torch.Generator().manual_seed(seed))
    return Bench(
        Logits(trainable),
        victim.classes,
        _some(supplies.train, rows[:searched]),
        _some(supplies.train, rows[searched : searched + HELD]),
        supplies.low,
        supplies.high,
        digest=trainable.source_sha256,
    )


def _chosen(report: ScanReport) -> tuple[str, ...]:
    """Return the names of the findings whose triggers are used."""
    flagged = tuple(finding.name for finding in report.flagged)
    return flagged or (next(trigger.finding for trigger in report.triggers),)


def _some(labelled: Labelled, rows: torch.Tensor) -> Labelled:
    return labelled.take(rows)
