"""Where a calibration turns to canaries, and goes on without them where it must; needs no torch itself.

What plants is imported by its name, and only here, so that ``guard calibrate`` runs without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Final

import numpy as np
from jaxtyping import Int64

from calibration.canaries.choice import FUSED, PLAIN, STATISTICS_TRIED, Choice, Setting
from calibration.canaries.measuring import Rate
from calibration.canaries.pool import Pool, lay_out_pool, least_images
from calibration.canary_kinds import DEFAULT_KINDS
from calibration.detector_choice import MOST_TO_FIT, images_to_certify
from calibration.errors import OptionError, TooFewImagesError
from calibration.evaluation.measuring import Known, check_targets, stamped
from calibration.findings import read_findings
from calibration.options import CalibrateOptions
from calibration.split import Split
from calibration.subject import Subject
from calibration.threshold import minimum_images
from calibration.trigger import load_trigger
from guard.detection.measurements import Statistic
from guard.detection.superimpose import BLEND_RULES

__all__ = ["NS", "as_chosen", "choose_by_canaries", "images_for_canaries"]

NS: Final = (16, 32, 64, 100)
"""Numbers of overlays that are tried, up to ``--overlays``."""

_JOB: Final = "calibration.canaries.job"


def images_for_canaries(options: CalibrateOptions, n_images: int, n_fit: int) -> int:
    """Return how many images to set aside to fit on: as many as canaries take, where there are so many."""
    if not options.wants_canaries:
        return n_fit
    needed = least_images(minimum_images(options.frr, options.delta))
    spare = n_images - options.overlays - images_to_certify(options)
    wanted = min(spare, max(n_fit, needed, n_images // 4), max(MOST_TO_FIT, needed))
    return max(n_fit, wanted) if wanted >= needed else n_fit


def choose_by_canaries(
    subject: Subject,
    split: Split,
    predicted: Int64[np.ndarray, " n"],
    options: CalibrateOptions,
    generator: np.random.Generator,
    *,
    fused: bool,
) -> Choice:
    """Return what canaries choose; nothing, and why, where they cannot be had.

    Args:
        subject: Model and images.
        split: Which images serve what; those that calibrate are not looked at.
        predicted: Class that the model gives to each image.
        options: Of the calibration.
        generator: Draws what is random.
        fused: Whether the fused detector is to be; else the choice is STRIP's.

    Raises:
        OptionError: If the scan is of another model.
        DataError: If the scan cannot be read, or a trigger of it does not fit the model.
    """
    known = _known(subject, options)
    if options.scan is not None and not known:
        return Choice(None, why_not=f"the scan {options.scan} flagged no label, so it holds no trigger")
    try:
        job = _job()
        least = minimum_images(options.frr, options.delta)
        pool = lay_out_pool(subject, split, predicted, options, least, generator)
    except (ImportError, TooFewImagesError) as error:
        return Choice(None, why_not=_reason(error))
    _check_known(known, pool)
    choice: Choice = job.choose(
        pool,
        Rate(options.frr, options.delta),
        Setting(options.blend_rule.name, options.overlays, FUSED if fused else PLAIN),
        kinds=options.canaries or DEFAULT_KINDS,
        known=known,
        blends=tuple(BLEND_RULES) if options.blend == "auto" else (options.blend,),
        overlays=_overlays(options),
        statistics=_statistics(options, fused=fused),
        seed=int(generator.integers(2**31)),
    )
    return choice


def as_chosen(
    options: CalibrateOptions, split: Split, choice: Choice | None, *, fused: bool
) -> tuple[CalibrateOptions, Split, tuple[Statistic, ...]]:
    """Return options, split and statistics as they were chosen; without a choice the defaults.

    Args:
        options: As asked for.
        split: Before the choice; overlays and images to fit on that are left out serve nothing.
        choice: What canaries chose; None where none were asked for.
        fused: Whether the fused detector was to be.

    Returns:
        Statistics are ``strip`` alone for the plain detector.
    """
    setting = Setting(options.blend_rule.name, options.overlays, FUSED if fused else PLAIN)
    if choice is not None and choice.chosen is not None:
        setting = choice.chosen.setting
    chosen = replace(options, blend=setting.blend, overlays=setting.overlays)  # type: ignore[arg-type]
    fit = split.fit if setting.fused else split.fit[:0]
    return chosen, replace(split, overlays=split.overlays[: setting.overlays], fit=fit), setting.statistics


def _job() -> ModuleType:
    return import_module(_JOB)


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error.name or error} is not installed; pip install 'inference-guard[repair]'"
    return str(error)


def _overlays(options: CalibrateOptions) -> tuple[int, ...]:
    if options.rounds is not None:
        return (options.overlays,)
    return tuple(sorted({count for count in NS if count < options.overlays} | {options.overlays}))


def _statistics(options: CalibrateOptions, *, fused: bool) -> tuple[tuple[Statistic, ...], ...]:
    if not fused:
        return (PLAIN,)
    return tuple(each for each in STATISTICS_TRIED if each != PLAIN or options.detector == "auto")


def _known(subject: Subject, options: CalibrateOptions) -> tuple[Known, ...]:
    """Return the triggers that a scan of this model flagged."""
    if options.scan is None:
        return ()
    findings = read_findings(options.scan)
    if findings.model_sha256 != subject.source.sha256:
        raise OptionError(
            f"--scan {options.scan} is of another model (SHA-256 {findings.model_sha256[:12]}..., "
            f"{options.model} has {subject.source.sha256[:12]}...); scan this one, or leave --scan out"
        )
    return tuple(_named(Known(path.name, load_trigger(path)) for path in findings.triggers))


def _named(known: Iterator[Known]) -> Iterator[Known]:
    seen: dict[str, int] = {}
    for each in known:
        seen[each.name] = seen.get(each.name, 0) + 1
        yield each if seen[each.name] == 1 else Known(f"{each.name}-{seen[each.name]}", each.attack)


def _check_known(known: tuple[Known, ...], pool: Pool) -> None:
    check_targets(known, pool.classes)
    for each in known:
        stamped(each, pool.held[:1])
