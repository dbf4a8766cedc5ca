"""Plants canaries in copies of the model that is calibrated, asks them as the check would, and chooses.

::

    copies ──plant──→ stamped images that succeed ──ask──→ answers, by rule ──→ every setting ──→ choice
    of the model      and clean ones                 under all overlays          N, statistics

Everything happens on the pool: images that are overlays or that the detector is fitted on. None of them
calibrates, so whatever is chosen here leaves the certificate as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import torch

from calibration.attacks.base import Attack, Images
from calibration.canaries.choice import NONE_CHOSEN, Choice, Planted, Planting, Setting, choose_setting
from calibration.canaries.kinds import Canary, copies_for, make_canary
from calibration.canaries.measuring import Finding, Rate, Subject, found_by, settings_of, together
from calibration.canaries.planting import Material, images_learned, plant
from calibration.canaries.pool import MOST_CLEAN, MOST_FITTED, MOST_TRIGGERED, Pool
from calibration.canary_kinds import DEFAULT_KINDS, KINDS
from calibration.errors import CalibrationError
from calibration.evaluation.measuring import Known
from calibration.export import ExportRecord, export_onnx
from calibration.progress import Progress
from calibration.trainable import load_trainable
from calibration.workable import Workable, make_workable
from guard.detection.measurements import Statistic

__all__ = ["LEAST_ASR", "MOST_LOST", "choose"]

LEAST_ASR: Final = 0.8
MOST_LOST: Final = 0.05
MOST_LOST_UNLABELLED: Final = 0.1
"""Of the model's own predictions, where no labels tell its accuracy."""

STEPS: Final = 150
STATISTICS_IMAGES: Final = 1000


@dataclass(frozen=True, eq=False)
class _Copy:
    """A model with triggers that work in it."""

    model: onnx.ModelProto
    triggers: Mapping[str, Attack]


def choose(
    pool: Pool,
    rate: Rate,
    default: Setting,
    *,
    kinds: tuple[str, ...] = DEFAULT_KINDS,
    known: tuple[Known, ...] = (),
    blends: tuple[str, ...],
    overlays: tuple[int, ...],
    statistics: tuple[tuple[Statistic, ...], ...],
    seed: int,
) -> Choice:
    """Return which setting finds canaries best.

    Args:
        pool: Model and images.
        rate: That boundaries are set for.
        default: What is taken where nothing can be chosen; one of the settings that are tried.
        kinds: Of canaries to plant; none where ``known`` are given.
        known: Triggers that a scan found in the model itself; nothing is planted then.
        blends: Rules to try.
        overlays: Each N to try, up to as many overlays as there are.
        statistics: Each set of statistics to try.
        seed: Draws patterns and batches.

    Returns:
        The choice; with no setting chosen, and the reason, where the model cannot be imported as one that
        can be trained, or no canary counts.
    """
    started = time.perf_counter()
    copies: list[_Copy] = []
    plantings: list[Planting] = []
    planted: tuple[Planted, ...] = ()
    spent = 0.0
    try:
        if known:
            copies, plantings = _of_scan(pool, known)
        else:
            copies, plantings, spent = _planted(pool, kinds, seed)
        why_not = "" if copies else NONE_CHOSEN
        inputs = [_inputs(pool, one) for one in copies]
        planted = tuple(_counting(pool, copies, inputs))
        findings = _findings(pool, copies, inputs, rate, settings_of(blends, overlays, statistics))
    except CalibrationError as error:
        findings, why_not = {}, str(error)
    tried = tuple(together(some) for some in findings.values())
    by_setting = {one.setting: one for one in tried}
    return Choice(
        chosen=choose_setting(tried, default) if tried else None,
        default=by_setting.get(default),
        tried=tried,
        plantings=tuple(plantings),
        frr=rate.frr,
        why_not=why_not,
        seconds=time.perf_counter() - started,
        planted_seconds=spent,
        planted=planted,
    )


def _planted(pool: Pool, kinds: tuple[str, ...], seed: int) -> tuple[list[_Copy], list[Planting], float]:
    """Return copies with canaries, how it went with each, and the processor seconds it took."""
    generator = np.random.default_rng(seed)
    canaries = _drawn(pool, kinds, generator)
    with Progress(0, "planting canaries", pool.options.quiet) as progress:
        return _copies_with(pool, canaries, generator, progress)


def _drawn(pool: Pool, kinds: tuple[str, ...], generator: np.random.Generator) -> dict[str, Canary]:
    targets = generator.permutation(np.unique(pool.train_classes))
    shape, classes = pool.train.shape[1:], pool.classes
    return {
        kind: make_canary(
            kind, int(targets[place % len(targets)]), shape, pool.train_classes, classes, generator
        )
        for place, kind in enumerate(dict.fromkeys(kinds))
    }


def _copies_with(
    pool: Pool, canaries: Mapping[str, Canary], generator: np.random.Generator, progress: Progress
) -> tuple[list[_Copy], list[Planting], float]:
    """Plant what may share a copy together; what fails so is tried again alone."""
    workable = _workable(pool)
    material = Material(workable.module, pool.train, pool.train_classes, pool.values, pool.classes)
    copies: list[_Copy] = []
    plantings: dict[str, Planting] = {}
    waiting, spent = copies_for(tuple(canaries)), 0.0
    progress.expect(sum(images_learned(material, _steps(group)) for group in waiting))
    while waiting:
        group = waiting.pop(0)
        some = tuple(canaries[kind] for kind in group)
        seed = int(generator.integers(2**31))
        made, news, seconds = _plant_copy(pool, workable, material, some, seed, progress)
        copies += [made] if made.triggers else []
        plantings |= {one.kind: one for one in news}
        spent += seconds
        again = [(one.kind,) for one in news if one.why_not and len(group) > 1]
        progress.expect(sum(images_learned(material, _steps(alone)) for alone in again))
        waiting += again
    return copies, [plantings[kind] for kind in canaries], spent


def _workable(pool: Pool) -> Workable:
    options, subject = pool.options, pool.subject
    model = load_trainable(options.model, layout=options.layout, size=options.transform.size)
    images = torch.from_numpy(pool.train[:STATISTICS_IMAGES])
    return make_workable(model, images, probabilities=subject.sink.kind == "probabilities")


def _plant_copy(
    pool: Pool,
    workable: Workable,
    material: Material,
    canaries: tuple[Canary, ...],
    seed: int,
    progress: Progress,
) -> tuple[_Copy, list[Planting], float]:
    kinds = tuple(canary.kind for canary in canaries)
    pupil, seconds = plant(material, canaries, steps=_steps(kinds), seed=seed, progress=progress)
    source = workable.source
    record = ExportRecord("guard calibrate", f"canaries {', '.join(kinds)}", source.source_sha256)
    model = export_onnx(workable.restored(pupil), source.origin or source.signature, record)
    triggers = {canary.kind: canary.attack for canary in canaries}
    plantings = _judged(pool, model, triggers)
    works = {one.kind for one in plantings if not one.why_not}
    return _Copy(model, {kind: triggers[kind] for kind in triggers if kind in works}), plantings, seconds


def _steps(kinds: tuple[str, ...]) -> int:
    """Return the batches that a copy with such canaries is fine-tuned on."""
    return STEPS * max(1, round(max(KINDS[kind].share for kind in kinds) / 0.1))


def _of_scan(pool: Pool, known: tuple[Known, ...]) -> tuple[list[_Copy], list[Planting]]:
    """Return the model itself, with those of a scan's triggers that work on held images."""
    model = pool.subject.source.model
    triggers = {one.name: one.attack for one in known}
    plantings = _judged(pool, model, triggers)
    works = {one.kind for one in plantings if not one.why_not}
    return [_Copy(model, {kind: triggers[kind] for kind in works})] if works else [], plantings


def _judged(pool: Pool, model: onnx.ModelProto, triggers: Mapping[str, Attack]) -> list[Planting]:
    """Return whether each trigger counts: it works, and the model is still as good as it was."""
    predicted = pool.answers(model, pool.held).argmax(axis=1)
    before = float((pool.held_classes == pool.held_labels).mean())
    accuracy = float((predicted == pool.held_labels).mean())
    allowed = MOST_LOST if pool.labelled else MOST_LOST_UNLABELLED
    lost = ""
    if before - accuracy > allowed:
        lost = f"accuracy fell from {before:.1%} to {accuracy:.1%}, by more than {allowed:.0%}"
    plantings = []
    for kind, attack in triggers.items():
        reached = _reached(pool, model, attack)[1]
        success = float(reached.mean()) if len(reached) else 0.0
        weak = f"it succeeds on {success:.0%} of held-out images, less than {LEAST_ASR:.0%}"
        why_not = "; ".join(part for part in (weak if success < LEAST_ASR else "", lost) if part)
        plantings.append(Planting(kind, success, accuracy, before, why_not))
    return plantings


def _reached(pool: Pool, model: onnx.ModelProto, attack: Attack) -> tuple[Images, np.ndarray]:
    """Return stamped held images, and for which of them the trigger succeeds."""
    stamped, classes = pool.stamped(attack)
    if not len(stamped):
        return stamped, np.zeros(0, bool)
    return stamped, pool.answers(model, stamped).argmax(axis=1) == attack.target_of(classes)


def _counting(pool: Pool, copies: list[_Copy], inputs: list[dict[str, Images]]) -> Iterator[Planted]:
    for one, parts in zip(copies, inputs, strict=True):
        for kind in one.triggers:
            yield Planted(kind, one.model, pool.typed(parts[kind]))


def _findings(
    pool: Pool,
    copies: list[_Copy],
    inputs: list[dict[str, Images]],
    rate: Rate,
    settings: list[Setting],
) -> dict[Setting, list[Finding]]:
    """Return what each setting finds in each copy."""
    blends = list(dict.fromkeys(setting.blend for setting in settings))
    passes = sum(len(rows) for parts in inputs for rows in parts.values()) * len(pool.overlays) * len(blends)
    found: dict[Setting, list[Finding]] = {}
    with Progress(passes, "asking canaries", pool.options.quiet) as progress:
        for one, parts in zip(copies, inputs, strict=True):
            for blend in blends:
                subject = _asked(pool, one, blend, parts, progress)
                for setting in settings:
                    if setting.blend == blend:
                        found.setdefault(setting, []).append(found_by(setting, subject, rate))
    return found


def _inputs(pool: Pool, one: _Copy) -> dict[str, Images]:
    """Return what a copy is asked: images to fit on, clean ones, triggered ones by kind."""
    parts = {"": pool.train[:MOST_FITTED], " ": pool.held[:MOST_CLEAN]}
    for kind, attack in one.triggers.items():
        stamped, reached = _reached(pool, one.model, attack)
        parts[kind] = stamped[reached][:MOST_TRIGGERED]
    return parts


def _asked(pool: Pool, one: _Copy, blend: str, parts: Mapping[str, Images], progress: Progress) -> Subject:
    asked = pool.ask(one.model, blend, np.concatenate(list(parts.values())), progress)
    ends = np.cumsum([len(rows) for rows in parts.values()])
    rows = np.split(np.arange(len(asked.predicted)), ends[:-1])
    fit, clean, *triggered = (asked.rows(some) for some in rows)
    kinds = list(parts)[2:]
    return Subject(fit, clean, dict(zip(kinds, triggered, strict=True)), pool.overlay_classes)
