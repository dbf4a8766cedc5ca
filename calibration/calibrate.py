"""``guard calibrate``: from a model and clean images to an artifact that can be served.

::

    read ─→ predict ─→ split ─→ score ─→ boundary ─→ write
    model,   what the    overlays │   all N blends of every    the rate's    artifact,
    images   output is   and rest     remaining image          guarantee     report, picture

Nothing is decided twice: the score, the order of its sum and the comparison with the boundary are the
functions that serve.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from jaxtyping import Float32, Int64

from calibration.options import CalibrateOptions
from calibration.outputs import accuracy_of, kind_of
from calibration.picture import entropy_picture
from calibration.progress import Progress, StageClock
from calibration.report import CalibrationReport, Findings, machine, package_versions
from calibration.scoring import most_uncertain_first, predict, score_images
from calibration.split import Split, split_images
from calibration.subject import Subject, read_subject
from calibration.threshold import conformal_boundary, normal_boundary
from guard.arrays import Logits, Overlays
from guard.artifact import (
    BoundaryRecord,
    CalibrationRecord,
    CheckSettings,
    Probe,
    Profile,
    write_artifact,
)
from guard.detection.plan import CheckPlan, default_rounds
from guard.detection.strip import Strip, mean_entropies, passes_needed
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS

__all__ = ["calibrate"]

_PROBE_IMAGES = 4


@dataclass(frozen=True)
class _Scored:
    """Overlays in the plan's order, the entropies of all calibration images in that order, and a probe."""

    overlays: Overlays
    entropies: Float32[np.ndarray, "n m"]
    probe: Probe
    device: str


def calibrate(options: CalibrateOptions, extra_files: Mapping[str, bytes] | None = None) -> CalibrationReport:
    """Calibrate a model on clean images and write its artifact.

    Args:
        options: What to do.
        extra_files: More files for the artifact, by name, such as where the model came from.

    Returns:
        What was found, and where the artifact is.

    Raises:
        GuardError: Model, images or options are not fit; nothing is written then.
    """
    clock = StageClock()
    seed = secrets.randbits(53) if options.seed is None else options.seed
    with clock.stage("read"):
        subject = read_subject(options)
    with clock.stage("predict"):
        outputs = _predict(subject, options)
        subject = subject.with_kind(kind_of(outputs, str(options.model)))
    with clock.stage("split"):
        split = split_images(subject.images.images, options.overlays, np.random.default_rng(seed))
    with clock.stage("score"):
        scored = _score(subject, split, options)
    with clock.stage("boundary"):
        means = mean_entropies(scored.entropies)
        boundary = _boundary(means, options)
    profile = _profile(subject, outputs, split, scored, boundary, options)
    findings = Findings(
        profile=profile,
        options=options,
        outputs=outputs,
        images=subject.images,
        prepare=subject.prepare,
        split=split,
        overlay_entropies=mean_entropies(scored.entropies.T),
        device=scored.device,
        machine=machine(),
        seconds=dict(clock.seconds),
    )
    artifact = write_artifact(
        options.out,
        model=subject.source.data,
        overlays=scored.overlays,
        profile=profile,
        probe=scored.probe,
        extra_files={
            "report.json": findings.to_json(),
            "entropies.png": entropy_picture(means, boundary, options.model_name),
            **(extra_files or {}),
        },
    )
    return CalibrationReport(artifact, findings)


def _predict(subject: Subject, options: CalibrateOptions) -> Logits:
    images, first = subject.images.images, subject.prepare(subject.images.images[:1])
    try:
        with (
            subject.open(first, options.blend_rule, options.device, options.threads) as classifier,
            Progress(len(images), "clean images", options.quiet) as progress,
        ):
            classifier.warm_up(subject.batch)
            return predict(classifier, images, subject.prepare, subject.batch, progress)
    except ORT_ERRORS as error:
        raise _failed(options, error) from error


def _score(subject: Subject, split: Split, options: CalibrateOptions) -> _Scored:
    overlays = subject.prepare(subject.images.images[split.overlays])
    images = subject.images.images[split.calibration]
    n_overlays = len(overlays)
    try:
        with (
            subject.open(overlays, options.blend_rule, options.device, options.threads) as classifier,
            Progress(len(images) * n_overlays, "blends", options.quiet) as progress,
        ):
            entropies = score_images(classifier, images, subject.prepare, n_overlays, subject.batch, progress)
            device = classifier.device
            chosen = _spread(len(images), _PROBE_IMAGES)
            probed = subject.prepare(images[chosen])
            logits = classifier.logits(probed)
    except ORT_ERRORS as error:
        raise _failed(options, error) from error
    order = most_uncertain_first(entropies)
    entropies = entropies[:, order]
    probe = Probe(probed, logits, mean_entropies(entropies[chosen]))
    return _Scored(overlays[order], entropies, probe, device)


def _spread(count: int, wanted: int) -> Int64[np.ndarray, " w"]:
    """Return up to ``wanted`` indices spread over ``count``, for images often come class by class."""
    return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))


def _boundary(means: np.ndarray, options: CalibrateOptions) -> BoundaryRecord:
    if options.threshold == "normal":
        return normal_boundary(means, options.frr)
    return conformal_boundary(means, options.frr, options.delta)


def _profile(
    subject: Subject,
    outputs: Logits,
    split: Split,
    scored: _Scored,
    boundary: BoundaryRecord,
    options: CalibrateOptions,
) -> Profile:
    rounds = options.rounds or default_rounds(options.overlays)
    passes = passes_needed(scored.entropies, Strip(CheckPlan(rounds), boundary.boundary_bits))
    labels = subject.images.labels
    rows = split.calibration
    return Profile(
        model_name=options.model_name,
        model_sha256=subject.source.sha256,
        fixed_batch=subject.signature.fixed_batch,
        input=subject.prepare.source,
        output=subject.sink,
        preprocessing=subject.prepare.record,
        check=CheckSettings(blend=options.blend, rounds=rounds),
        boundary=boundary,
        calibration=CalibrationRecord(
            clean_entropies_bits=tuple(np.sort(mean_entropies(scored.entropies)).tolist()),
            mean_passes_clean=float(passes.mean()),
            accuracy=None if labels is None else accuracy_of(outputs[rows], labels[rows]),
            seed=options.seed,
            n_images=len(subject.images),
            data_sha256=subject.images.digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=package_versions(),
        ),
    )


def _failed(options: CalibrateOptions, error: Exception) -> UnfitModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UnfitModelError(f"{options.model} failed while running: {reason}; export the model again")
