"""What memory layout, precision and compilation do to fine-tuning: seconds of an epoch, loss and accuracy.

Run by `python -m benchmarks.repair_speed --part forms`. Two epochs of the same fine-tuning, from the same
weights, seed and batches, in each form; the second is timed, in processor time of this process and of the
compilers it started. The first is too, for what compiling costs. Training always uses channels-last order;
here the training loop's format is exchanged for the plain one, to see what it is worth.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any
from unittest import mock

import torch

from calibration.augmentation import Augmentation
from calibration.labelled import Labelled
from calibration.recipe import Precision
from calibration.repair.base import accuracy, copy_of
from calibration.repair.fine_tuning import FineTuning
from calibration.training import Hooks, TrainingData, train
from calibration.workable import Workable

__all__ = ["FORMS", "Form", "measure_forms", "render_forms"]

EPOCHS = 2


@dataclass(frozen=True)
class Form:
    """How the same arithmetic is done."""

    precision: Precision
    channels_last: bool = True
    compiled: bool = False

    @property
    def name(self) -> str:
        parts = [self.precision, "channels last" if self.channels_last else "channels first"]
        return ", ".join([*parts, "compiled"] if self.compiled else parts)


FORMS = (
    Form("float32", channels_last=False),
    Form("float32"),
    Form("bfloat16", channels_last=False),
    Form("bfloat16"),
)
COMPILED = Form("bfloat16", compiled=True)


def measure_forms(
    workable: Workable, data: Labelled, test: Labelled, *, repeats: int, seed: int, compiled: bool
) -> dict[str, dict[str, Any]]:
    """Return seconds, loss and accuracy of each form, forms alternating."""
    forms = [*FORMS, COMPILED] if compiled else FORMS
    runs: dict[str, list[dict[str, float]]] = {form.name: [] for form in forms}
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        for _ in range(repeats):
            for form in forms:
                runs[form.name].append(run(form, workable, data, test, seed))
                print(f"{form.name:36}{runs[form.name][-1]}", flush=True)
    return {name: summary(found) for name, found in runs.items()}


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    seconds = [one["seconds"] for one in found]
    return {
        "seconds": median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "first_epoch_seconds": found[0]["first"],
        "loss": found[0]["loss"],
        "acc": found[0]["acc"],
        "same_every_time": len({(one["loss"], one["acc"]) for one in found}) == 1,
    }


def run(form: Form, workable: Workable, data: Labelled, test: Labelled, seed: int) -> dict[str, float]:
    student = copy_of(workable.module)
    recipe = FineTuning(epochs=EPOCHS, precision=form.precision).recipe(Augmentation())
    clock = [processor_seconds()]
    with plain_format(not form.channels_last):
        record = train(
            student,
            TrainingData(data.images, data.labels),
            replace(recipe, compiled=form.compiled),
            generator=torch.Generator().manual_seed(seed),
            hooks=Hooks(after_epoch=lambda *_: clock.append(processor_seconds())),
        )
    first, second = (later - earlier for earlier, later in pairwise(clock))
    return {
        "first": first,
        "seconds": second,
        "loss": record.epochs[-1].loss,
        "acc": accuracy(student.to(memory_format=torch.channels_last), test),  # type: ignore[call-overload]
    }


@contextmanager
def plain_format(wanted: bool) -> Iterator[None]:
    """Let the training loop order its tensors channels first."""
    if not wanted:
        yield
        return
    with mock.patch.object(torch, "channels_last", torch.contiguous_format):
        yield


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def render_forms(result: dict[str, Any]) -> str:
    rows = "\n".join(_row(name, form) for name, form in result["forms"].items())
    return f"""## Layout, precision, compilation

`{result["command"]}`

Two epochs of the same fine-tuning, {result["images"]} images each, in each form; loss and accuracy (on
{result["test_images"]:,} holdout images) after both. Median of {result["repeats"]} runs of the second.
The first epoch holds what compiling costs, the C++ compiler included. "Repeats": whether every run ended with
the same loss and accuracy.

| form | seconds an epoch | range | first epoch | loss | accuracy | repeats |
|---|---|---|---|---|---|---|
{rows}
"""


def _row(name: str, form: dict[str, Any]) -> str:
    low, high = form["seconds_range"]
    same = "yes" if form["same_every_time"] else "no"
    return (
        f"| {name} | {form['seconds']:.2f} | {low:.2f} to {high:.2f} | {form['first_epoch_seconds']:.1f} "
        f"| {form['loss']:.4f} | {100 * form['acc']:.1f} % | {same} |"
    )
