"""Does the fused graph say what the sidecar says? Asked before anything is written.

The judge is the classifier that serves, over all N overlays, and the bare model beside it; the images are the
artifact's own (its probe, or some of its overlays), random ones, and some that no check may accept. Among
those few there may be nothing suspicious, so the graph is asked three times: as it is, and with its boundary
moved to where everything is clean and to where nothing is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from jaxtyping import Float32

from guard.arrays import DATATYPES, Images
from guard.artifact import Artifact, Profile
from guard.artifact.probe import Probe
from guard.detection.p_values import p_value
from guard.detection.threshold import Policy
from guard.errors import UnfitModelError
from guard.export.fused_graph import P_VALUE, SCORE, VERDICT, with_boundary
from guard.runtime.onnx_classifier import ORT_ERRORS
from guard.runtime.probing import Answers, take_probe

__all__ = ["SCORE_TOLERANCE", "Parity", "check_parity"]

SCORE_TOLERANCE: Final = 1e-4
"""How far a score may be from the sidecar's, bits."""

_OUTPUT_TOLERANCE: Final = {"FP32": 1e-4, "FP16": 1e-2}
"""How far an answer may be from the bare model's, as a share of its largest value (float16 keeps 11 bits)."""

_LOAD_ERRORS: Final[tuple[type[Exception], ...]] = (*ORT_ERRORS, ValueError)
_ALL_CLEAN, _ALL_SUSPICIOUS = -1.0, 1e9
_CLEAN, _RANDOM = 8, 8
_MAX_PAIRS = 64


@dataclass(frozen=True)
class Parity:
    """What the comparison came to.

    Attributes:
        images: Images compared.
        score_difference: Largest difference of a score, bits.
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


def check_parity(fused: onnx.ModelProto, artifact: Artifact, classifier: Answers, policy: Policy) -> Parity:
    """Compare a fused graph with the classifier that serves and with the bare model, on this machine's CPU.

    Args:
        fused: The fused graph.
        artifact: What it was made of.
        classifier: The artifact's, loaded.
        policy: The policy built into the graph.

    Raises:
        UnfitModelError: If it cannot be run, a score is further off than :data:`SCORE_TOLERANCE`, a
            verdict, p-value or answer is another, or an input that cannot be checked is accepted.
    """
    profile = artifact.profile
    images = _images(artifact)
    sidecar = take_probe(classifier, images, profile.check.n_overlays, max_pairs=_MAX_PAIRS)
    bare = _bare_outputs(artifact, images)
    scores_off, outputs_off = [], []
    for boundary in (profile.boundary.boundary_bits, _ALL_CLEAN, _ALL_SUSPICIOUS):
        as_it_is = boundary == profile.boundary.boundary_bits
        session = _session(fused if as_it_is else with_boundary(fused, boundary))
        said = _ask(session, profile, images)
        scores_off.append(_compare_scores(said, sidecar))
        _check_verdicts(said, sidecar, profile, policy, boundary)
        outputs_off.append(_compare_outputs(said, bare, profile, policy))
        closed = _check_closed(session, profile, policy)
    return Parity(len(images), max(scores_off), max(outputs_off), closed)


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
        raise UnfitModelError(f"the fused graph cannot be loaded ({error}); {_ADVICE}") from error


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


def _compare_scores(said: _Answers, sidecar: Probe) -> float:
    off = np.abs(said.scores + sidecar.mean_entropy_bits)
    _require(off <= SCORE_TOLERANCE, f"scores images up to {off.max():.3g} bits off the sidecar's")
    return float(off.max())


def _check_verdicts(
    said: _Answers, sidecar: Probe, profile: Profile, policy: Policy, boundary: float
) -> None:
    """Compare verdicts and p-values, where a rounding of the score cannot change them."""
    suspicious = "reject" if policy is Policy.ENFORCE else "flag"
    clean = np.asarray(profile.calibration.clean_entropies_bits, np.float64)
    for row, mean in enumerate(sidecar.mean_entropy_bits):
        expected = suspicious if mean < boundary else "accept"
        if abs(mean - boundary) > SCORE_TOLERANCE and said.verdicts[row] != expected:
            _refuse(f"says {said.verdicts[row]!r} of an image that the sidecar says {expected!r} of")
        least, most = (p_value(mean + step, clean) for step in (-SCORE_TOLERANCE, SCORE_TOLERANCE))
        if not least - 1e-6 <= said.p_values[row] <= most + 1e-6:
            _refuse(
                f"gives an image the p-value {said.p_values[row]:.4g}, the sidecar {p_value(mean, clean):.4g}"
            )


def _compare_outputs(said: _Answers, bare: np.ndarray, profile: Profile, policy: Policy) -> float:
    through = np.array([verdict == "accept" or policy is Policy.FLAG for verdict in said.verdicts])
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
    expected = "reject" if policy is Policy.ENFORCE else "unchecked"
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
    raise UnfitModelError(f"the fused graph {what}; nothing was written: {_ADVICE}")


_ADVICE: Final = (
    "see with `guard verify` that the artifact itself is sound here, and export the model with a plain, "
    "current opset"
)
