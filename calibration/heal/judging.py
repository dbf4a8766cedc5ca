"""Judges a repaired model without knowing the true trigger, by what there is; :class:`Gates` has the list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from calibration.attacks.base import Images
from calibration.errors import DataError
from calibration.evaluation.job import Evaluation, evaluate
from calibration.evaluation.numbers import Share, share
from calibration.evaluation.options import EvaluateOptions
from calibration.evaluation.report import write
from calibration.findings import read_findings
from calibration.heal.evidence import Evidence
from calibration.heal.gates import Measure
from calibration.heal.options import HealOptions
from calibration.heal.subject import Subject
from calibration.intake import rows_of
from calibration.preprocessing import Transform, plan_input
from calibration.scan.base import ScanResult
from calibration.scan.distribution_file import load_distribution
from calibration.scan.job import scan_model
from calibration.scan.options import ScanOptions

__all__ = ["Bar", "measure_repair", "rescan_measures", "scan_numbers"]

Answers = Callable[[Images], Int64[np.ndarray, " n"]]


@dataclass(frozen=True, eq=False)
class Bar:
    """What every repaired model is held against.

    Attributes:
        subject: The original.
        images: File of the images to judge by.
        transform: Their preprocessing.
        evidence: Of the backdoor.
        options: Of the job.
    """

    subject: Subject
    images: Path
    transform: Transform
    evidence: Evidence
    options: HealOptions


def measure_repair(model: Path, bar: Bar, folder: Path) -> tuple[Measure, ...]:
    """Return what was measured for each gate, and write the evaluation and the scan into a folder.

    Args:
        model: The repaired model.
        bar: What to judge it by.
        folder: Gets ``evaluation.json`` and ``rescan/``.

    Raises:
        GuardError: If the model cannot be run.
    """
    evaluation = evaluate(
        EvaluateOptions(
            model=str(model),
            data=bar.images,
            original=str(bar.subject.file),
            triggers=bar.options.triggers,
            scan=bar.evidence.scan,
            transform=bar.transform,
            layout=bar.subject.layout,
            device=bar.options.device,
            threads=bar.options.threads,
            quiet=bar.options.quiet,
        )
    )
    write(evaluation, folder)
    return (
        *_clean(evaluation),
        *_triggers(evaluation),
        *_answered(evaluation, bar),
        *(rescan_measures(model, bar, folder / "rescan") if bar.options.rescan else _not_rescanned()),
    )


def scan_numbers(result: ScanResult) -> tuple[float | None, float | None]:
    """Return the largest anomaly index of any finding and the smallest p-value; None where there is none.

    A scanner that has no chance to give, and says that there is a backdoor, counts as one of 0.
    """
    indices = [
        finding.facts["anomaly_index"]
        for report in result.reports
        for finding in report.findings
        if math.isfinite(finding.facts.get("anomaly_index", math.nan))
    ]
    chances = [report.p_value for report in result.reports if report.p_value is not None]
    chances += [0.0 for one in result.reports if one.p_value is None and one.verdict == "backdoored"]
    return max(indices, default=None), min(chances, default=None)


def rescan_measures(model: Path, bar: Bar, folder: Path) -> Iterator[Measure]:
    """Scan the repaired model with the scanners that found something in the original, on unseen images."""
    options, names = bar.options, ("max_anomaly_index", "min_rescan_p_value")
    before = (bar.evidence.anomaly_index, bar.evidence.p_value)
    try:
        result = scan_model(
            ScanOptions(
                model=str(model),
                data=bar.images,
                out=folder,
                scanners=bar.evidence.scanners,
                settings={name: options.scan[name] for name in bar.evidence.scanners if name in options.scan},
                images=options.images,
                transform=bar.transform,
                layout=bar.subject.layout,
                seed=options.seed,
                threads=options.threads,
                quiet=options.quiet,
            )
        ).result
    except DataError as error:
        yield from (
            Measure(name, None, before=then, note=f"no scan: {error}")
            for name, then in zip(names, before, strict=True)
        )
        return
    note = f"{', '.join(bar.evidence.scanners)} on the repaired model: {result.verdict}"
    for name, value, then in zip(names, scan_numbers(result), before, strict=True):
        yield Measure(name, value, before=then, note=note, sure=result.verdict != "inconclusive")


def _not_rescanned() -> Iterator[Measure]:
    for name in ("max_anomaly_index", "min_rescan_p_value"):
        yield Measure(name, note="the repaired model was not scanned (--no-rescan)")


def _clean(evaluation: Evaluation) -> Iterator[Measure]:
    """Yield the accuracy lost, its interval from images that only one of both has right; the agreement."""
    count, before = len(evaluation.images), evaluation.before
    labels = evaluation.images.labels
    assert before is not None
    assert evaluation.agreement is not None
    if labels is None:
        yield Measure("max_accuracy_drop", note="no labels were given")
    else:
        was, now = before.predictions == labels, evaluation.measured.predictions == labels
        sure = 1 - (1 - evaluation.options.confidence) / 2  # two intervals, both right often enough
        lost, won = share(was & ~now, sure), share(now & ~was, sure)
        yield Measure(
            "max_accuracy_drop",
            lost.value - won.value,
            lost.low - won.high,
            lost.high - won.low,
            note=f"{was.mean():.1%} before, {now.mean():.1%} now, of {count} images",
        )
    same = evaluation.agreement.same
    yield Measure("min_agreement", same.value, same.low, same.high, note=f"of {count} clean images")


def _triggers(evaluation: Evaluation) -> Iterator[Measure]:
    """Yield the success of the worst trigger, as it is and amplified."""
    before = evaluation.before
    assert before is not None
    once, grids = [], []
    for known, then, now in zip(evaluation.known, before.triggers, evaluation.measured.triggers, strict=True):
        if now.once is not None and then.once is not None:
            once.append((now.once.asr, then.once.asr, known.name))
        grids += [
            (under.asr, then.amplified[copies].asr, f"{known.name} x{copies}")
            for copies, under in now.amplified.items()
        ]
    yield _worst("max_inverted_asr", once, "no trigger is known")
    yield _worst("max_amplified_asr", grids, "no trigger is a patch that can be repeated")


def _answered(evaluation: Evaluation, bar: Bar) -> Iterator[Measure]:
    """Yield what needs both models' answers to other images than an evaluation's."""
    images, signature = evaluation.images, evaluation.model.signature
    prepare = plan_input(signature, images.images, bar.transform)
    row = rows_of(images.images[:1], prepare, signature)
    original = evaluation.original
    assert original is not None
    running = (prepare, row, evaluation.classes, bar.options.device, bar.options.threads)
    with original.opened(*running) as old, evaluation.model.opened(*running) as new:
        answers = tuple(lambda some, run=run: _in_batches(run, some) for run in (old, new))
        rows = rows_of(images.images, prepare, signature)
        labels = images.labels
        if labels is None:
            labels = answers[0](rows)
        yield _distribution(bar, rows, labels, answers)
        yield _suspects(bar.evidence, answers)


def _in_batches(run: Callable[[Images], np.ndarray], rows: Images) -> Int64[np.ndarray, " n"]:
    parts = [run(rows[start : start + 256]).argmax(axis=1) for start in range(0, len(rows), 256)]
    return np.concatenate(parts).astype(np.int64)


def _distribution(
    bar: Bar, rows: Images, labels: Int64[np.ndarray, " n"], answers: tuple[Answers, ...]
) -> Measure:
    """Stamp a patch of its own on each image that is of another class than the patches lead to."""
    folders: Mapping[int, Path] = (
        {} if bar.evidence.scan is None else read_findings(bar.evidence.scan).distributions
    )
    found = []
    for label, folder in folders.items():
        others = torch.from_numpy(rows[labels != label])
        if not len(others):
            continue
        generator = torch.Generator().manual_seed(bar.options.seed)
        stamped = load_distribution(folder).stamp(others, generator).numpy()
        then, now = (share(answer(stamped) == label) for answer in answers)
        found.append((now, then, f"patches for label {label}"))
    return _worst("max_distribution_asr", found, "no distribution was learned (--distribution)")


def _suspects(evidence: Evidence, answers: tuple[Answers, ...]) -> Measure:
    held = evidence.quarantined
    if held is None:
        return Measure("max_suspects_kept", note="no suspects were given")
    images, labels = held.suspects.images[held.led], held.labels[held.led]
    then, kept = (share(answer(images) == labels) for answer in answers)
    which = "suspects" if held.label is None else f"suspects led to label {held.label}"
    note = f"{kept.hits} of {kept.of} {which}"
    return Measure("max_suspects_kept", kept.value, kept.low, kept.high, then.value, note)


def _worst(gate: str, found: list[tuple[Share, Share, str]], otherwise: str) -> Measure:
    if not found:
        return Measure(gate, note=otherwise)
    now, then, name = max(found, key=lambda one: one[0].value)
    more = f", the worst of {len(found)}" if len(found) > 1 else ""
    return Measure(gate, now.value, now.low, now.high, then.value, f"{name}{more}, {now.hits} of {now.of}")
