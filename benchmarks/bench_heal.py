"""Heals victims of the zoo by `guard heal`, as an operator would, and measures what it published.

::

    python -m benchmarks.bench_heal --data FOLDER [--victims NAME ...] [--images 4000]

The clean images are random ones of the victim's own training images, with true labels; the command parts
them itself, and knows neither the trigger nor the target label. What it published is measured on the whole
holdout. A run writes one record into ``benchmarks/results/heal.json`` and the table beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import commit, describe_machine
from benchmarks.repair.measure import measure
from benchmarks.repair.methods import STRONG
from benchmarks.repair.victims import Victim, load_victim
from benchmarks.zoo.source import read_dataset
from calibration.trainable import load_trainable

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "heal.json"
WORK = ROOT / "build" / "bench_heal"


def main() -> None:
    """Heal what is asked for, write the records and the table."""
    parser = argparse.ArgumentParser(description="Heal the zoo's victims.")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "data")
    parser.add_argument("--victims", nargs="+", default=[*STRONG, "resnet_badnets", "gtsrb_badnets"])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.victims:
        record = heal(load_victim(name, options.data), options)
        kept = [one for one in read() if one["victim"] != name]
        RESULTS.write_text(
            json.dumps(sorted([*kept, record], key=lambda one: one["victim"]), indent=1) + "\n"
        )
        RESULTS.with_suffix(".md").write_text(table(read()))
        print(line(record), flush=True)


def heal(victim: Victim, options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one victim."""
    name, work = victim.subject.name, WORK / victim.subject.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    dataset = read_dataset(options.data, victim.subject.record["data"]["name"])
    rows = np.random.default_rng(options.seed).permutation(len(dataset.labels))[: options.images]
    np.savez(work / "clean.npz", images=dataset.images[rows], labels=dataset.labels[rows])
    told = ["heal", str(victim.subject.model), "--data", str(work / "clean.npz"), "--out", str(work / "out")]
    told += ["--publish", str(work / "repository" / name), "--seed", str(options.seed), "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "guard.cli", *told], cwd=ROOT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    published = work / "repository" / name / "1" / "model.onnx"
    told_by = work / "out" / "heal.json"
    report = json.loads(told_by.read_text()) if told_by.exists() else {}
    return {
        "victim": name,
        "images": options.images,
        "seed": options.seed,
        "exit_code": done.returncode,
        "ending": report.get("ending", "error"),
        "attempts": [attempt_of(one) for one in report.get("attempts", ())],
        "processor_seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "before": measure(load_trainable(victim.subject.model).module, victim),
        "after": measure(load_trainable(published).module, victim) if published.exists() else None,
        "command": f"python -m benchmarks.bench_heal --data FOLDER --victims {name}",
        "commit": commit(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        **describe_machine(("torch", "numpy", "onnx", "onnxruntime")),
    }


def attempt_of(attempt: dict[str, Any]) -> dict[str, Any]:
    """Return what a repair was judged by."""
    return {name: attempt[name] for name in ("method", "passed", "gates") if name in attempt}


def read() -> list[dict[str, Any]]:
    """Return the records there are."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a page."""
    rows = [line(record) for record in records]
    images = ", ".join(sorted({f"{record['images']:,}" for record in records}))
    return f"""# Healing the zoo

What `guard heal` does to backdoored networks of [the zoo](zoo.md) when it is given the model and {images}
clean images with labels, at its defaults, knowing neither the trigger nor its label. By
`python -m benchmarks.bench_heal`; records in `heal.json`. ASR / ACC in percent on the whole holdout, of which
it saw nothing; the last of the repairs tried is the one published; seconds are processor time of everything,
the scans before and after included.

| victim | ending | tried | before | after | triggered images right | seconds |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def line(record: dict[str, Any]) -> str:
    """Return a record as a row of the table."""
    tried = ", ".join(one["method"] for one in record["attempts"]) or "–"
    cells = [record["victim"], record["ending"], tried]
    for measured in (record["before"], record["after"]):
        cells.append(f"{100 * measured['asr']:.1f} / {100 * measured['acc']:.1f}" if measured else "–")
    right = f"{100 * record['after']['robust_acc']:.1f}" if record["after"] else "–"
    return f"| {' | '.join([*cells, right, format(record['processor_seconds'], '.0f')])} |"


if __name__ == "__main__":
    main()
