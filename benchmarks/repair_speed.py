"""What attention distillation costs: an epoch of NAD and of ARGD against one of plain fine-tuning.

`python -m benchmarks.repair_speed --data FOLDER` times, in processor time of one thread, alternating, as
often as `--repeats` says, on a victim of the zoo and its clean images:

- fine-tuning: an epoch at the papers' batch, augmentation and precision;
- teacher: the forward pass that an attention method adds for each batch, up to the last stage it looks at;
- nad, argd: an epoch of the student's stage, as those repairs do it.

The overhead is (the method's epoch - the teacher's pass) / (the epoch of fine-tuning): what is paid for
attention maps and losses. `--part forms` measures fine-tuning in other layouts and precisions, and compiled
(`benchmarks.repair_forms`), and keeps the rest of what was recorded before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import commit, describe_machine
from benchmarks.repair_forms import measure_forms, render_forms
from benchmarks.zoo.source import as_floats, read_dataset
from benchmarks.zoo.subjects import load_subject
from calibration.prediction import autocast
from calibration.repair.argd import AttentionRelationGraphDistillation
from calibration.repair.attention import last_stages
from calibration.repair.base import Labelled, Repair, Sitting, StageRecord, Supplies, copy_of
from calibration.repair.fine_tuning import FineTuning
from calibration.repair.nad import NeuralAttentionDistillation
from calibration.stages import tapped
from calibration.trainable import load_trainable
from calibration.training import TrainingData
from calibration.workable import Workable, make_workable

RESULT = Path(__file__).with_name("results") / "repair_speed.json"
BATCH = 64
SEED = 20
TEST_IMAGES = 2000


class Timed(Sitting):
    """A sitting that notes the processor time of each stage."""

    def train(self, stage: str, *given: Any, **named: Any) -> StageRecord:
        started = time.process_time()
        record = super().train(stage, *given, **named)
        SECONDS[stage] = time.process_time() - started
        return record


SECONDS: dict[str, float] = {}


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    workable, supplies = prepare(options)
    if options.part == "forms":
        result = json.loads(RESULT.read_text()) | {"forms": record_forms(workable, supplies, options)}
    else:
        result = record_epochs(workable, supplies, options)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(render(result))
    print(render(result))


def record_forms(workable: Workable, supplies: Supplies, options: argparse.Namespace) -> dict[str, Any]:
    test = holdout(options)
    return {
        "command": f"{command_of(options)} --part forms{' --compiled' if options.compiled else ''}",
        "repeats": options.repeats,
        "images": options.images,
        "test_images": len(test),
        "forms": measure_forms(
            workable, supplies.train, test, repeats=options.repeats, seed=SEED, compiled=options.compiled
        ),
        "commit": commit(),
    }


def record_epochs(workable: Workable, supplies: Supplies, options: argparse.Namespace) -> dict[str, Any]:
    repairs: dict[str, Repair] = {
        "fine-tuning": FineTuning(epochs=1),
        "nad": NeuralAttentionDistillation(epochs=1, teacher_epochs=1),
        "argd": AttentionRelationGraphDistillation(epochs=1, teacher_epochs=1),
    }
    paths: dict[str, Callable[[], float]] = {
        name: lambda repair=repair: time_epoch(repair, workable, supplies)  # type: ignore[misc]
        for name, repair in repairs.items()
    }
    paths["teacher"] = lambda: time_teacher(workable, supplies)
    runs: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(options.repeats):
        for name, path in paths.items():
            runs[name].append(path())
            print(f"{repeat + 1}/{options.repeats}  {name:12}{runs[name][-1]:.2f} s", flush=True)
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    return summarise(runs, options) | {name: before[name] for name in ("forms",) if name in before}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure what an epoch of repair costs")
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--subject", default="badnets", help="a victim of the zoo")
    parser.add_argument("--images", type=int, default=2500, help="clean images of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=("epochs", "forms"), default="epochs", help="what to measure")
    parser.add_argument("--compiled", action="store_true", help="the compiled form too, which takes minutes")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[Workable, Supplies]:
    subject = load_subject(options.subject)
    dataset = read_dataset(options.data, subject.record["data"]["name"])
    rows = np.random.default_rng(SEED).permutation(len(dataset.labels))[: options.images]
    images = torch.from_numpy(as_floats(dataset.images[rows]))
    clean = Labelled(images, torch.from_numpy(dataset.labels[rows]))
    workable = make_workable(load_trainable(subject.model), images[:500])
    low, high = torch.zeros(len(images[0])), torch.ones(len(images[0]))
    return workable, Supplies(clean, clean, dataset.classes, workable.shape, low, high)


def holdout(options: argparse.Namespace) -> Labelled:
    """Images that the victim never saw."""
    dataset = read_dataset(options.data, load_subject(options.subject).record["data"]["name"])
    images = torch.from_numpy(as_floats(dataset.holdout_images[:TEST_IMAGES]))
    return Labelled(images, torch.from_numpy(dataset.holdout_labels[:TEST_IMAGES]))


def time_epoch(repair: Repair, workable: Workable, supplies: Supplies) -> float:
    """Seconds of the stage in which the repaired network learns, its last."""
    generator = torch.Generator().manual_seed(SEED)
    done = repair.repair(workable.module, supplies, generator=generator, sitting=Timed())
    return SECONDS[done.stages[-1].name]


def time_teacher(workable: Workable, supplies: Supplies) -> float:
    """Seconds of the teacher's passes over as many batches as an epoch has."""
    teacher = copy_of(workable.module).requires_grad_(False).to(memory_format=torch.channels_last)
    looking = tapped(teacher, last_stages(teacher, supplies.shape, 3, "teacher"), logits=False)
    data = TrainingData(supplies.train.images, supplies.train.labels)
    started = time.process_time()
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        for step in range(len(data.images) // BATCH):
            batch = data.images[step * BATCH : (step + 1) * BATCH]
            looking(batch.contiguous(memory_format=torch.channels_last))
    return time.process_time() - started


def summarise(runs: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    rounds = [dict(zip(runs, each, strict=True)) for each in zip(*runs.values(), strict=True)]
    paths = {}
    for name, seconds in runs.items():
        paths[name] = {"seconds": median(seconds), "seconds_range": [min(seconds), max(seconds)]}
        if name in {"nad", "argd"}:
            shares = [(one[name] - one["teacher"]) / one["fine-tuning"] for one in rounds]
            paths[name] |= {"overhead": median(shares), "overhead_range": [min(shares), max(shares)]}
    return {
        "setting": f"{load_subject(options.subject).record['setting']}, batches of {BATCH}, bfloat16",
        "command": command_of(options),
        "seed": SEED,
        "repeats": options.repeats,
        "images": options.images,
        "threads": 1,
        "paths": paths,
        "commit": commit(),
        **describe_machine(("torch",)),
    }


def command_of(options: argparse.Namespace) -> str:
    return (
        f"python -m benchmarks.repair_speed --data FOLDER --subject {options.subject} "
        f"--images {options.images} --repeats {options.repeats}"
    )


def render(result: dict[str, Any]) -> str:
    rows = "\n".join(_row(name, path) for name, path in result["paths"].items())
    return f"""# What an epoch of repair costs

{result["setting"]}; {result["images"]} clean images, processor time of one thread.
Median of {result["repeats"]} alternating runs on {result["machine"]["cpu"]}.
`{result["command"]}`

| path | seconds an epoch | range | overhead | range |
|---|---|---|---|---|
{rows}

Overhead: (epoch of the method - the teacher's passes) / (epoch of fine-tuning), from the same round each.
`teacher` is the passes alone that NAD and ARGD add, without gradients and up to the last stage.

{render_forms(result["forms"]) if "forms" in result else ""}"""


def _row(name: str, path: dict[str, Any]) -> str:
    low, high = path["seconds_range"]
    row = f"| {name} | {path['seconds']:.2f} | {low:.2f} to {high:.2f} "
    if "overhead" not in path:
        return row + "| | |"
    low, high = path["overhead_range"]
    return row + f"| {path['overhead']:.2f} | {low:.2f} to {high:.2f} |"


if __name__ == "__main__":
    main()
