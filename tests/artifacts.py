"""Small artifacts for tests: a tiny model, random overlays, and a boundary that the test chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from guard.arrays import held
from guard.artifact import (
    BoundaryRecord,
    CalibrationRecord,
    CheckSettings,
    InputSpec,
    OutputSpec,
    Preprocessing,
    Probe,
    Profile,
    write_artifact,
)
from guard.artifact.manifest import sha256_of
from guard.artifact.signature import read_signature
from guard.runtime.onnx_classifier import OnnxClassifier
from guard.runtime.probing import take_probe
from tests.tiny_models import linear_classifier

N_OVERLAYS = 8


def make_profile(
    model: onnx.ModelProto,
    *,
    boundary_bits: float = 0.5,
    block_bits: float | None = None,
    blend: str = "add",
    rounds: tuple[int, ...] = (2, 2, 4),
    kind: str = "logits",
    layout: str | None = None,
    classes: int = 10,
    labels: tuple[str, ...] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Profile:
    """Return a profile that fits ``model``."""
    signature = read_signature(model, "the test's model", layout=layout)
    high = 255.0 if signature.datatype == "UINT8" else 1.0
    boundary = BoundaryRecord(
        method="conformal",
        boundary_bits=boundary_bits,
        frr=0.01,
        confidence=0.95,
        certified_frr=0.01,
        expected_frr=0.005,
        rank=1,
        n_scores=4,
    )
    block = None
    if block_bits is not None:
        block = boundary.model_copy(
            update={"boundary_bits": block_bits, "frr": 0.001, "certified_frr": 0.001}
        )
    return Profile(
        model_name="tiny",
        model_sha256=sha256_of(model.SerializeToString()),
        fixed_batch=signature.fixed_batch,
        input=InputSpec(
            name=signature.input_name,
            datatype=signature.datatype,
            shape=signature.shape,
            layout=signature.layout,
            low=(0.0,),
            high=(high,),
        ),
        output=OutputSpec(
            name=signature.output_name,
            datatype=signature.output_datatype,
            classes=classes,
            kind=kind,
            labels=labels,
        ),
        preprocessing=preprocessing or Preprocessing(),
        check=CheckSettings(blend=blend, rounds=rounds),
        boundary=boundary,
        block=block,
        calibration=CalibrationRecord(
            clean_entropies_bits=(0.5, 1.0, 1.5, 2.0),
            mean_passes_clean=3.0,
            accuracy=None,
            seed=0,
            n_images=12,
            data_sha256="0" * 64,
            created="2026-01-01T00:00:00+00:00",
            versions={},
        ),
    )


def random_images(profile: Profile, count: int, seed: int = 0) -> np.ndarray:
    """Return images in the profile's input space."""
    low, high = (np.broadcast_to(bound, profile.input.shape) for bound in profile.input.value_range.bounds())
    images = np.random.default_rng(seed).uniform(low, high, (count, *profile.input.shape))
    return held(images, profile.input.datatype)


def write_tiny_artifact(
    repository: Path,
    name: str = "tiny",
    *,
    model: onnx.ModelProto | None = None,
    probed: bool = False,
    **profile_options: object,
) -> Path:
    """Write ``<repository>/<name>/<next version>``, with a probe if wanted, and return it."""
    model = model or linear_classifier()
    profile = make_profile(model, **profile_options)
    overlays = random_images(profile, profile.check.n_overlays, seed=99)
    return write_artifact(
        repository / name,
        model=model.SerializeToString(),
        overlays=overlays,
        profile=profile,
        probe=probe_of(model, profile, overlays) if probed else None,
    )


def probe_of(model: onnx.ModelProto, profile: Profile, overlays: np.ndarray) -> Probe:
    """Return what the model answers to three images, by the code that serves."""
    opened = OnnxClassifier.open(
        model,
        source=profile.input,
        sink=profile.output,
        fixed_batch=profile.fixed_batch,
        overlays=overlays,
        blend=profile.check.blend_rule,
        device="cpu",
        threads=1,
    )
    with opened as classifier:
        return take_probe(classifier, random_images(profile, 3, seed=7), len(overlays), max_pairs=5)
