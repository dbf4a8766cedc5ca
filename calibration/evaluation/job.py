"""``guard evaluate``: from a model and test images to what it gets right, and what triggers still do.

::

    read ─→ measure ─→ compare ─→ write
    model(s),  clean images, each trigger    predictions,   JSON, Markdown
    images     as it is and amplified        divergence
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from calibration.data import ImageSet
from calibration.errors import OptionError
from calibration.evaluation.fallen import Fallen, fallen_classes, fallen_note
from calibration.evaluation.measuring import Known, Measured, Task, check_targets, measure
from calibration.evaluation.numbers import Agreement, agreement
from calibration.evaluation.options import EvaluateOptions
from calibration.evaluation.subject import Candidate, read_candidate
from calibration.findings import read_findings
from calibration.intake import geometry_of, image_shape, rows_of
from calibration.outputs import check_labels, kind_of, warnings_of
from calibration.preprocessing import Prepare, plan_input
from calibration.progress import Progress
from calibration.report import machine, package_versions
from calibration.sources import read_images
from calibration.trigger import load_trigger

__all__ = ["Evaluation", "evaluate", "known_triggers"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        options: What was asked for.
        model: As it was read.
        original: The other model, if one was given.
        images: As they were read.
        classes: k.
        known: The triggers, in the order of each model's outcomes.
        measured: Of the model.
        before: Of the original.
        agreement: Between the two.
        fallen: Classes whose accuracy fell by more than chance.
        notes: What a reader should know.
        started: When, ISO 8601 in UTC.
        seconds: Wall-clock time.
    """

    options: EvaluateOptions
    model: Candidate
    original: Candidate | None
    images: ImageSet
    classes: int
    known: tuple[Known, ...]
    measured: Measured
    before: Measured | None
    agreement: Agreement | None
    fallen: tuple[Fallen, ...]
    notes: tuple[str, ...]
    started: str
    seconds: float
    machine: dict[str, str | int]
    versions: dict[str, str]


def evaluate(options: EvaluateOptions) -> Evaluation:
    """Measure a model, and another to compare with.

    Raises:
        GuardError: Models, images, triggers or options are not fit.
    """
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    model = _read(options.model, options.weights, options)
    original = None
    if options.original is not None:
        original = _read(options.original, options.original_weights, options)
        _require_alike(model, original)
    known = known_triggers(options.triggers, options.scan)
    images = read_images(options.data, options.labels, geometry_of(model.signature, options.transform))
    prepare = plan_input(model.signature, images.images, options.transform)
    row = rows_of(images.images[:1], prepare, model.signature)
    classes = model.classes(row)
    check_targets(known, classes)
    if original is not None and original.classes(row) != classes:
        raise OptionError(
            f"--original {original.where} has {original.classes(row)} classes, {model.where} has {classes}; "
            f"give the model that it was made from"
        )
    check_labels(images, classes)
    task, before, measured = _measured(options, (model, original), images, prepare, classes, known)
    notes = [*images.notes, *_notes(task, known, measured, model.where)]
    both, fallen = None, tuple[Fallen, ...]()
    if before is not None and original is not None:
        kinds = (kind_of(before.answers, original.where), kind_of(measured.answers, model.where))
        both = agreement(before.answers, measured.answers, kinds, options.confidence)
        if images.labels is not None:
            fallen = fallen_classes(
                before.predictions, measured.predictions, images.labels, 1 - options.confidence
            )
            notes += filter(None, [fallen_note(fallen, images.class_names)])
    return Evaluation(
        options=options,
        model=model,
        original=original,
        images=images,
        classes=classes,
        known=known,
        measured=measured,
        before=before,
        agreement=both,
        fallen=fallen,
        notes=tuple(notes),
        started=started,
        seconds=time.perf_counter() - start,
        machine=machine(),
        versions={**package_versions(), "python": platform.python_version()},
    )


def known_triggers(folders: Iterable[Path], scan: Path | None) -> tuple[Known, ...]:
    """Return the triggers in some folders and those of a scan's flagged findings, each by its own name.

    Raises:
        DataError: If a folder holds no trigger, or the scan's none that can be read.
    """
    paths = [*folders, *(read_findings(scan).triggers if scan is not None else ())]
    known: dict[str, Known] = {}
    for whole, path in {path.resolve(): path for path in paths}.items():
        name, count = whole.name, 1
        while name in known:
            count += 1
            name = f"{whole.name}-{count}"
        known[name] = Known(name, load_trigger(path))
    return tuple(known.values())


def _read(spec: str, weights: Path | None, options: EvaluateOptions) -> Candidate:
    return read_candidate(
        spec,
        weights=weights,
        input_shape=options.input_shape,
        layout=options.layout,
        size=options.transform.size,
    )


def _require_alike(model: Candidate, original: Candidate) -> None:
    faces = [
        (" x ".join(map(str, image_shape(each.signature))), each.signature.datatype == "UINT8")
        for each in (model, original)
    ]
    if faces[0] != faces[1]:
        names = [f"{shape} of {'8 bits' if eight else 'floats'}" for shape, eight in faces]
        raise OptionError(
            f"--original {original.where} takes images of {names[1]}, {model.where} of {names[0]}; give the "
            f"model that it was made from"
        )


def _measured(
    options: EvaluateOptions,
    models: tuple[Candidate, Candidate | None],
    images: ImageSet,
    prepare: Prepare,
    classes: int,
    known: tuple[Known, ...],
) -> tuple[Task, Measured | None, Measured]:
    """Measure the original first: where no labels were given, its predictions stand for them."""
    model, original = models

    def take(rows: np.ndarray) -> np.ndarray:
        return rows_of(images.images[rows], prepare, model.signature)

    def run(candidate: Candidate, task: Task, step: Callable[[int], None]) -> Measured:
        row = take(np.zeros(1, np.int64))
        with candidate.opened(prepare, row, classes, options.device, options.threads) as answer:
            measured = measure(answer, task, step)
        kind_of(measured.answers, candidate.where)  # refuses what is not finite
        return measured

    nothing = np.zeros(len(images), np.int64)
    labels = images.labels if images.labels is not None else nothing
    task = Task(take, labels, images.labels is not None, classes, known, options.confidence)
    with Progress(task.passes() * (1 + (original is not None)), "evaluating", options.quiet) as progress:
        if images.labels is None:
            first = run(original or model, Task(take, nothing, False, classes), progress.step)
            task = Task(take, first.predictions, False, classes, known, options.confidence)
        before = None if original is None else run(original, task, progress.step)
        return task, before, run(model, task, progress.step)


def _notes(task: Task, known: tuple[Known, ...], measured: Measured, where: str) -> list[str]:
    notes = []
    if not task.labelled:
        notes.append(
            "no labels were given: the original's predictions stand for them, or the model's own without an "
            "original; no accuracy is told"
        )
    acc = None if measured.acc is None else measured.acc.value
    notes += list(warnings_of(measured.answers, kind_of(measured.answers, where), acc))
    for each, outcome in zip(known, measured.triggers, strict=True):
        if outcome.once is None:
            notes.append(f"trigger {each.name} applies to none of the images, so nothing was stamped")
    return notes
