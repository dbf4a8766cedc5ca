"""Scans every subject of the zoo, clean and backdoored, and writes down what each scanner said.

::

    python -m benchmarks.scan.zoo --data FOLDER [--subjects NAME ...] [--scanners NAME ...] [--seeds 0 1 2]

A seed draws the clean images and everything in the search. Results: one JSON a subject, scanner and seed in
``benchmarks/results/scan/zoo/``; the table is made of them by ``python -m benchmarks.scan.render``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import commit, describe_machine
from benchmarks.scan.subjects import bench_of
from benchmarks.zoo.subjects import Subject, names
from calibration.attacks.inverted import Inverted
from calibration.scan.base import Bench, ScanReport
from calibration.scan.executor import LocalExecutor
from calibration.scan.table import SCANNERS

RESULTS = Path(__file__).parent.parent / "results" / "scan" / "zoo"
COMMIT = commit()
"""Of the code that is loaded, whatever is committed while it runs."""
PACKAGES = ("torch", "numpy", "scipy", "onnx")
SCANS = ("neural_cleanse", "wave_inversion", "warp_inversion", "pair_scan")


def main() -> None:
    """Scan what is asked for and is not there yet."""
    options = read_options()
    torch.set_num_threads(options.threads)
    changed = {} if options.goal is None else {"goal": options.goal}
    suffix = "" if options.goal is None else f"-goal{options.goal:g}"
    for seed in options.seeds:
        for name in options.subjects:
            subject, bench = bench_of(name, options.data, seed)
            for scanner in options.scanners:
                path = RESULTS / f"{name}-{scanner}-{seed}{suffix}.json"
                if path.exists() and not options.again:
                    continue
                start = time.process_time()
                report = (
                    SCANNERS[scanner].make(**changed).scan(bench, seed=seed, executor=LocalExecutor(bench))
                )
                record = record_of(subject, bench, report, seed, options)
                record["cpu_seconds"] = time.process_time() - start
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record, indent=1) + "\n")
                print(
                    f"{name} {scanner} {seed}: {report.verdict} {report.seconds:.0f} s {report.reasons[0]}",
                    flush=True,
                )


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Scan the zoo.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--subjects", nargs="+", default=names())
    parser.add_argument("--scanners", nargs="+", default=list(SCANS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--goal", type=float, help="in place of the scanners' own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--again", action="store_true", help="also what is there already")
    return parser.parse_args()


def record_of(
    subject: Subject, bench: Bench, report: ScanReport, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return everything about one scan as plain values."""
    return {
        "subject": subject.name,
        "attack": subject.record["attack"],
        "targets": targets_of(subject, bench),
        "data": subject.record["data"]["name"],
        "scanner": report.scanner,
        "seed": seed,
        "verdict": report.verdict,
        "reasons": report.reasons,
        "p_value": report.p_value,
        "flagged": [finding.name for finding in report.flagged],
        "findings": [
            {
                "name": finding.name,
                "source": finding.source,
                "target": finding.target,
                "p_value": finding.p_value,
                **finding.facts,
            }
            for finding in report.findings
        ],
        "iou": overlap(subject, report),
        "seconds": report.seconds,
        "facts": report.facts,
        "options": report.options,
        "threads": options.threads,
        "images": [len(bench.clean), len(bench.held)],
        "model_sha256": bench.digest,
        "command": f"python -m benchmarks.scan.zoo --data FOLDER --subjects {subject.name} "
        f"--scanners {report.scanner} --seeds {seed}",
        "commit": COMMIT,
        **describe_machine(PACKAGES),
    }


def targets_of(subject: Subject, bench: Bench) -> list[int]:
    """Return the classes that the subject's backdoor leads to; none of a clean one."""
    if subject.attack is None:
        return []
    labels = np.arange(bench.classes, dtype=np.int64)
    rows = subject.attack.applies_to(labels)
    return sorted({int(target) for target in subject.attack.target_of(labels)[rows]})


def overlap(subject: Subject, report: ScanReport) -> float | None:
    """Return the likeliest patch mask's intersection over union with the pixels the true trigger changes.

    None where either is no patch. The mask counts where it is at least half of its largest value.
    """
    found = next(
        (trigger.attack for trigger in report.triggers if isinstance(trigger.attack, Inverted)), None
    )
    if subject.attack is None or found is None or found.mask is None:
        return None
    grey = np.random.default_rng(0).random((4, *found.mask.shape[1:]), np.float32)[:, None]
    images = np.repeat(grey, 3, axis=1)
    changed = (subject.attack.stamp(images) != images).any(axis=(0, 1))
    if changed.mean() > 0.5:
        return None
    mask = found.mask[0] >= found.mask.max() / 2
    return float((mask & changed).sum() / (mask | changed).sum())


if __name__ == "__main__":
    main()
