"""Does the guarded graph say what the sidecar says? Asked before anything is written.

The judge is the classifier that serves, with its detector over all N overlays, and the bare model beside it;
the images are the artifact's own (its probe, or some of its overlays), random ones, and some that no check
may accept. Among those few there may be nothing suspicious, so the graph is asked again with its boundaries
moved to where everything is clean, to where everything is suspicious, and to where everything is doubtful.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from jaxtyping import Float32, Float64

from guard.arrays import DATATYPES, Images
from guard.artifact import Artifact, Profile
from guard.detection.base import Decision, Detector
from guard.detection.p_values import p_value
from guard.detection.threshold import Policy, Verdict
from guard.errors import UnfitModelError
from guard.export.guarded_graph import with_boundaries
from guard.export.judgement import P_VALUE, SCORE, VERDICT, Tiers, words_of
from guard.runtime.onnx_classifier import ORT_ERRORS
from guard.runtime.probing import Answers
from guard.runtime.score_shift import full_scores

__all__ = ["SCORE_TOLERANCE", "Parity", "check_parity"]

SCORE_TOLERANCE: Final = 1e-4
"""How far a score may be from the sidecar's, in the detector's units; as a share of it where that is above 1.
STRIP's units are bits, and those of the fused detector are told in :mod:`guard.detection.fusion`."""

_OUTPUT_TOLERANCE: Final = {"FP32": 1e-4, "FP16": 1e-2}
"""How far an answer may be from the bare model's, as a share of its largest value (float16 keeps 11 bits)."""

_LOAD_ERRORS: Final[tuple[type[Exception], ...]] = (*ORT_ERRORS, ValueError)
_BELOW_ALL, _ABOVE_ALL = -1e15, 1e15
_CLEAN, _RANDOM = 8, 8
_MAX_PAIRS = 64


@dataclass(frozen=True)
class Parity:
    """What the comparison came to.

    Attributes:
        images: Images compared.
        score_difference: Largest difference of a score, in the detector's units.
        output_difference: Largest difference of an answer that was let through.
        closed: Rows that cannot be checked and were seen to be closed.
    """

    images: int
    score_difference: float
    output_difference: float
    closed: int


@dataclass(frozen=True)
class _Answers:
    outputs: Float32[np.ndarray, "n k"]
    scores: Float32[np.ndarray, " n"]
    verdicts: list[str]
    p_values: Float32[np.ndarray, " n"]


def check_parity(
    guarded: onnx.ModelProto, artifact: Artifact, classifier: Answers, detector: Detector, policy: Policy
) -> Parity:
    """Compare a guarded graph with what serves and with the bare model, on this machine's CPU.

    Args:
        guarded: The guarded graph.
        artifact: What it was made of.
        classifier: The artifact's, loaded.
        detector: The artifact's.
        policy: The policy built into the graph.

    Raises:
        UnfitModelError: If it cannot be run, a score is further off than :data:`SCORE_TOLERANCE`, a
            verdict, p-value or answer is another, or an input that cannot be checked is accepted.
    """
    profile = artifact.profile
    images = _images(artifact)
    values = -full_scores(classifier, detector, images, max_pairs=_MAX_PAIRS)
    bare = _bare_outputs(artifact, images)
    scores_off, outputs_off = [], []
    for graph, tiers in _trials(guarded, Tiers.of(profile)):
        session = _session(graph)
        said = _ask(session, profile, images)
        scores_off.append(_compare_scores(said, values))
        _check_verdicts(said, values, tiers, policy)
        outputs_off.append(_compare_outputs(said, bare, profile))
        closed = _check_closed(session, profile, policy)
    return Parity(len(images), max(scores_off), max(outputs_off), closed)


def _trials(guarded: onnx.ModelProto, own: Tiers) -> Iterator[tuple[onnx.ModelProto, Tiers]]:
    """Yield the graph as it is, and with boundaries that leave everything clean, suspicious and doubtful."""
    yield guarded, own
    for bounds in ((_BELOW_ALL, _BELOW_ALL), (_ABOVE_ALL, _ABOVE_ALL), (_ABOVE_ALL, _BELOW_ALL)):
        yield with_boundaries(guarded, *bounds), replace(own, boundary=bounds[0], block_boundary=bounds[1])


def _images(artifact: Artifact) -> Images:
    spec = artifact.profile.input
    low, high = (np.broadcast_to(bound, spec.shape) for bound in spec.value_range.bounds())
    random = np.random.default_rng(0).uniform(low, high, (_RANDOM, *spec.shape))
    clean = artifact.overlays if artifact.probe is None else artifact.probe.images
    least, most = spec.value_range.tolerated()
    fits = ((clean >= least) & (clean <= most)).reshape(len(clean), -1).all(axis=1)
    return np.concatenate([clean[fits][:_CLEAN], random.astype(DATATYPES[spec.datatype])])


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        data = model.SerializeToString()
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _LOAD_ERRORS as error:
        raise UnfitModelError(f"the guarded graph cannot be loaded ({error}); {_ADVICE}") from error


def _batches(profile: Profile, images: Images) -> list[np.ndarray]:
    """Parts of several sizes, or of the one that the model takes, the last filled up with its last row."""
    if profile.fixed_batch is None:
        return [images[:1], images[1:4], images[4:]] if len(images) > 4 else [images]
    size = profile.fixed_batch
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
    return [padded[start : start + size] for start in range(0, len(padded), size)]


def _run(
    session: ort.InferenceSession, profile: Profile, images: Images, names: list[str]
) -> list[np.ndarray]:
    try:
        parts = [session.run(names, {profile.input.name: part}) for part in _batches(profile, images)]
    except ORT_ERRORS as error:
        raise UnfitModelError(
            f"the graph fails on the images it is tried with ({error}); {_ADVICE}"
        ) from error
    return [np.concatenate(column)[: len(images)] for column in zip(*parts, strict=True)]


def _ask(session: ort.InferenceSession, profile: Profile, images: Images) -> _Answers:
    names = [profile.output.name, SCORE, VERDICT, P_VALUE]
    outputs, scores, verdicts, p_values = _run(session, profile, images, names)
    return _Answers(outputs.astype(np.float32), scores[:, 0], verdicts[:, 0].tolist(), p_values[:, 0])


def _bare_outputs(artifact: Artifact, images: Images) -> np.ndarray:
    profile = artifact.profile
    [outputs] = _run(_session(artifact.model), profile, images, [profile.output.name])
    return outputs.astype(np.float32)


def _compare_scores(said: _Answers, values: Float64[np.ndarray, " n"]) -> float:
    off = np.abs(said.scores + values)
    _require(off <= _may_differ(values), f"scores images up to {off.max():.3g} off the sidecar's")
    return float(off.max())


def _check_verdicts(said: _Answers, values: Float64[np.ndarray, " n"], tiers: Tiers, policy: Policy) -> None:
    """Compare verdicts and p-values, where a rounding of the score cannot change them."""
    words = words_of(policy)
    for row, (value, step) in enumerate(zip(values, _may_differ(values), strict=True)):
        expected = words[tiers.decision(value)]
        clear = all(abs(value - bound) > step for bound in (tiers.boundary, tiers.block_boundary))
        if clear and said.verdicts[row] != expected:
            _refuse(f"says {said.verdicts[row]!r} of an image that the sidecar says {expected!r} of")
        least, most = (p_value(value + sign * step, tiers.clean_values) for sign in (-1, 1))
        if not least - 1e-6 <= said.p_values[row] <= most + 1e-6:
            _refuse(
                f"gives an image the p-value {said.p_values[row]:.4g}, the sidecar "
                f"{p_value(value, tiers.clean_values):.4g}"
            )


def _may_differ(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    differ: np.ndarray = SCORE_TOLERANCE * np.maximum(1.0, np.abs(values))
    return differ


def _compare_outputs(said: _Answers, bare: np.ndarray, profile: Profile) -> float:
    through = np.array([verdict != Verdict.REJECT for verdict in said.verdicts])
    _require(np.isnan(said.outputs[~through]), "lets through answers to images that it rejects")
    with np.errstate(invalid="ignore"):  # infinities of one sign are equal
        off = np.abs(said.outputs[through] - bare[through])
    largest = float(np.abs(bare[np.isfinite(bare)]).max(initial=1.0))
    same = (off <= _OUTPUT_TOLERANCE[profile.output.datatype] * largest) | (
        said.outputs[through] == bare[through]
    )
    _require(same, f"answers otherwise than the bare model, by up to {np.nanmax(off, initial=0.0):.3g}")
    return float(np.nan_to_num(off, posinf=0.0).max(initial=0.0))


def _check_closed(session: ort.InferenceSession, profile: Profile, policy: Policy) -> int:
    images = _uncheckable_images(profile)
    if not len(images):
        return 0
    said = _ask(session, profile, images)
    expected = words_of(policy)[Decision.FAILED]
    _require(np.array([verdict == expected for verdict in said.verdicts]), "accepts what cannot be checked")
    _require(np.isnan(said.scores), "scores what cannot be checked")
    if policy is Policy.ENFORCE:
        _require(np.isnan(said.outputs), "lets through answers to what cannot be checked")
    return len(images)


def _uncheckable_images(profile: Profile) -> Images:
    """Return images with one value that is NaN, infinite or out of range, as far as the dtype has such."""
    spec = profile.input
    dtype = DATATYPES[spec.datatype]
    low, high = (np.broadcast_to(bound, spec.shape) for bound in spec.value_range.bounds())
    middle = ((low + high) / 2).astype(dtype)
    beyond = [float(low.flat[-1] - (high - low).flat[-1]), float(high.flat[-1] + (high - low).flat[-1])]
    if spec.datatype == "UINT8":
        values = [value for value in beyond if 0 <= value <= 255]
    else:
        values = [np.nan, np.inf, -np.inf, *beyond]
    images = np.repeat(middle[None], len(values), axis=0)
    images.reshape(len(values), middle.size)[:, -1] = np.array(values).astype(dtype)
    return images


def _require(fine: np.ndarray, what: str) -> None:
    if not fine.all():
        _refuse(what)


def _refuse(what: str) -> None:
    raise UnfitModelError(f"the guarded graph {what}; nothing was written: {_ADVICE}")


_ADVICE: Final = (
    "see with `guard verify` that the artifact itself is sound here, and export the model with a plain, "
    "current opset"
)
