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
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from calibration.options import CalibrateOptions
from calibration.outputs import accuracy_of, kind_of
from calibration.picture import entropy_picture, score_picture
from calibration.progress import Progress, StageClock
from calibration.report import CalibrationReport, Findings, machine, package_versions
from calibration.scored import Scored, score
from calibration.scoring import predict
from calibration.second_opinions import Judged, judge_capabilities
from calibration.settling import settle
from calibration.split import Split
from calibration.subject import Subject, read_subject
from calibration.threshold import conformal_boundary, normal_boundary, score_boundary
from guard.arrays import Logits
from guard.artifact import (
    BoundaryRecord,
    CalibrationRecord,
    CheckSettings,
    EarlyRecord,
    FusedRecord,
    Profile,
    write_artifact,
)
from guard.artifact.fused_record import LayerRecord, fused_detector, plain_fusion
from guard.detection.fused import outcomes
from guard.detection.measurements import Statistic
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip, mean_entropies, passes_needed
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS

__all__ = ["calibrate"]


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
    predicted, generator = outputs.argmax(axis=1), np.random.default_rng(seed)
    settled = settle(subject, predicted, options, generator, clock)
    options, split, canaries = settled.options, settled.split, settled.canaries
    with clock.stage("score"):
        scored = _score(subject, split, predicted, options, settled.statistics)
    judged = Judged()
    if options.capabilities:
        with clock.stage("second opinions"):
            planted = () if canaries is None else canaries.planted
            judged = judge_capabilities(subject, split, options, scored.probe.images, generator, planted)
    with clock.stage("boundary"):
        means = mean_entropies(scored.entropies)
        boundary = _boundary(means, options.frr, options, scored.fit is not None)
        profile = _profile(subject, outputs, split, scored, boundary, judged, options)
    findings = Findings(
        profile=profile,
        options=options,
        outputs=outputs,
        images=subject.images,
        prepare=subject.prepare,
        split=split,
        why_strip=settled.why_strip,
        why_no_layers="" if scored.look is None else scored.look.why_not,
        canaries=canaries and canaries.serving(_statistics(scored)),
        second_opinions=judged,
        overlay_entropies=mean_entropies(scored.entropies.T),
        device=scored.device,
        machine=machine(),
        seconds=dict(clock.seconds),
    )
    artifact = _write(findings, subject, scored, judged, extra_files or {})
    return CalibrationReport(artifact, findings)


def _write(
    findings: Findings, subject: Subject, scored: Scored, judged: Judged, extra_files: Mapping[str, bytes]
) -> Path:
    files = {"report.json": findings.to_json(), **_picture(findings.profile), **extra_files}
    return write_artifact(
        findings.options.out,
        model=subject.source.data,
        overlays=scored.overlays,
        profile=findings.profile,
        probe=scored.probe,
        measures=None if scored.fit is None else scored.fit.measures,
        opinions=judged.opinions,
        extra_files=files,
    )


def _picture(profile: Profile) -> dict[str, bytes]:
    if profile.fused is not None:
        scores = np.array(profile.fused.clean_scores)
        return {"scores.png": score_picture(scores, profile.fused.boundary, profile.model_name)}
    means = np.array(profile.calibration.clean_entropies_bits)
    return {"entropies.png": entropy_picture(means, profile.boundary, profile.model_name)}


def _predict(subject: Subject, options: CalibrateOptions) -> Logits:
    images, first = subject.images.images, subject.prepare(subject.images.images[:1])
    try:
        with (
            subject.open(first, options) as classifier,
            Progress(len(images), "clean images", options.quiet) as progress,
        ):
            classifier.warm_up(subject.batch)
            return predict(classifier, images, subject.prepare, subject.batch, progress)
    except ORT_ERRORS as error:
        raise _failed(options, error) from error


def _score(
    subject: Subject,
    split: Split,
    predicted: np.ndarray,
    options: CalibrateOptions,
    statistics: tuple[Statistic, ...],
) -> Scored:
    try:
        return score(subject, split, predicted, options, statistics)
    except ORT_ERRORS as error:
        raise _failed(options, error) from error


def _boundary(means: np.ndarray, frr: float, options: CalibrateOptions, fused: bool) -> BoundaryRecord:
    """Return STRIP's boundary; where the fused detector decides it need not reject anything."""
    if options.threshold == "normal":
        return normal_boundary(means, frr)
    return conformal_boundary(means, frr, options.delta, may_be_zero=fused)


def _statistics(scored: Scored) -> tuple[Statistic, ...]:
    return ("strip",) if scored.fit is None else scored.fit.statistics


def _fused(scored: Scored, options: CalibrateOptions) -> FusedRecord | None:
    fit, measured = scored.fit, scored.measured
    if fit is None or measured is None:
        return None
    scores, block = fit.scores(measured, scored.distances), options.block_frr
    return FusedRecord(
        statistics=fit.statistics,
        **plain_fusion(fit.fusion),
        early=tuple(EarlyRecord.of(early) for early in fit.early),
        boundary=score_boundary(scores, options.frr, options.delta),
        block=None if block is None else score_boundary(scores, block, options.delta),
        clean_scores=tuple(np.sort(scores).tolist()),
        n_fitted=fit.n_fitted,
        probe_scores=tuple(scores[scored.probed].tolist()),
        layers=tuple(LayerRecord(**asdict(layer)) for layer in scored.look.layers) if scored.look else (),
    )


def _passes(scored: Scored, boundary: BoundaryRecord, fused: FusedRecord | None) -> np.ndarray:
    """Return the blends that the check spends on each calibration image."""
    if fused is None or scored.fit is None or scored.measured is None:
        return passes_needed(scored.entropies, Strip(CheckPlan(scored.rounds), boundary.boundary_bits))
    detector = fused_detector(fused, scored.fit.measures, scored.rounds, takes_logits=True)
    return outcomes(detector, scored.measured, scored.distances)[1]


def _profile(
    subject: Subject,
    outputs: Logits,
    split: Split,
    scored: Scored,
    boundary: BoundaryRecord,
    judged: Judged,
    options: CalibrateOptions,
) -> Profile:
    means, block = mean_entropies(scored.entropies), options.block_frr
    fused = _fused(scored, options)
    labels = subject.images.labels
    rows = split.calibration
    return Profile(
        model_name=options.model_name,
        model_sha256=subject.source.sha256,
        fixed_batch=subject.signature.fixed_batch,
        input=subject.prepare.source,
        output=subject.sink,
        preprocessing=subject.prepare.record,
        check=CheckSettings(
            detector="strip" if fused is None else "fused",
            blend=options.blend,
            rounds=scored.rounds,
            precision=options.precision,
        ),
        boundary=boundary,
        block=None if block is None else _boundary(means, block, options, fused is not None),
        fused=fused,
        opinions=judged.records,
        calibration=CalibrationRecord(
            clean_entropies_bits=tuple(np.sort(means).tolist()),
            mean_passes_clean=float(_passes(scored, boundary, fused).mean()),
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
