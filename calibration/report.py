"""What a calibration found: ``report.json`` for machines, a dozen lines for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import PIL
import scipy
from jaxtyping import Float64

from calibration.data import ImageSet
from calibration.options import CalibrateOptions
from calibration.outputs import warnings_of
from calibration.preprocessing import Prepare
from calibration.split import Split
from calibration.wording import command_line
from guard import __version__
from guard.arrays import Logits
from guard.artifact import BoundaryRecord, Profile, ScoreBoundary

__all__ = ["CalibrationReport", "Findings", "Lines", "Told", "machine", "package_versions"]

_QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_NEARLY_ZERO_BITS = 1e-3


@runtime_checkable
class Told(Protocol):
    """What a room found that calibrations know nothing of but how it is told."""

    def lines(self) -> Iterable[str]:
        """Yield what a person reads."""

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""


@runtime_checkable
class Lines(Protocol):
    """What is told a person line by line."""

    def lines(self) -> Iterable[str]:
        """Yield what a person reads."""


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything a calibration found.

    Attributes:
        outputs: The model's raw output on every image.
        why_strip: Why the detector is STRIP where the choice was left open; empty else.
        why_no_layers: Why the fused detector does not look inside the model although it may; empty else.
        canaries: What canaries chose; None where none were asked for.
        second_opinions: Capabilities that were tried, on or off; None for none.
        overlay_entropies: Mean clean entropy under each overlay, bits, in the plan's order.
        device: Where the model ran.
        seconds: Seconds of each stage.
    """

    profile: Profile
    options: CalibrateOptions
    outputs: Logits
    images: ImageSet
    prepare: Prepare
    split: Split
    why_strip: str
    why_no_layers: str
    overlay_entropies: Float64[np.ndarray, " m"]
    device: str
    machine: Mapping[str, str | int]
    seconds: Mapping[str, float]
    canaries: Told | None = None
    second_opinions: Lines | None = None

    def warnings(self) -> Iterator[str]:
        """Yield what the user should look into, most serious first."""
        profile, split = self.profile, self.split
        yield from warnings_of(self.outputs, profile.output.kind, profile.calibration.accuracy)
        if profile.fused is None and profile.boundary.boundary_bits < _NEARLY_ZERO_BITS:
            yield (
                f"the boundary is only {profile.boundary.boundary_bits:.2g} bits: nearly every input will "
                f"pass, triggered or not; check the preprocessing or try another --blend"
            )
        if profile.boundary.certified_frr is None:
            yield "--threshold normal guarantees no false-rejection rate; prefer conformal"
        if profile.calibration.seed is not None:
            yield "overlays can be rebuilt from the seed and the data; leave --seed out in production"
        if split.n_repeats:
            yield (
                f"{split.n_repeats} of {len(split.calibration)} calibration images are exact copies of "
                f"others; the guarantee counts them as independent draws"
            )
        if self.prepare.stored.measured:
            yield (
                f"the value range {self.prepare.stored} was taken from these images, and inputs beyond it "
                f"cannot be checked; declare the true one with --range LOW HIGH"
            )

    def to_json(self) -> bytes:
        """Return the content of ``report.json``."""
        return (json.dumps(self.to_record(), indent=2, ensure_ascii=False) + "\n").encode()

    def to_record(self) -> dict[str, Any]:
        """Return the report as plain values."""
        profile = self.profile
        means = np.asarray(profile.calibration.clean_entropies_bits)
        predicted = np.bincount(self.outputs.argmax(axis=1), minlength=profile.output.classes)
        return {
            "model": {
                "name": profile.model_name,
                "sha256": profile.model_sha256,
                "file": self.options.model.name,
            },
            "input": profile.input.model_dump(mode="json"),
            "output": profile.output.model_dump(mode="json"),
            "fixed_batch": profile.fixed_batch,
            "preprocessing": {
                **profile.preprocessing.model_dump(mode="json"),
                "stored_range": [self.prepare.stored.low, self.prepare.stored.high],
                "range_origin": self.prepare.stored.origin,
            },
            "data": {
                "name": self.options.data.name,
                "sha256": self.images.digest,
                "images": len(self.images),
                "calibration_images": len(self.split.calibration),
                "overlays": len(self.split.overlays),
                "fitted_on": len(self.split.fit),
                "copies_of_overlays": self.split.n_copies,
                "repeated_calibration_images": self.split.n_repeats,
                "class_names": self.images.class_names,
                "labels": self.images.labels is not None,
                "predicted_per_class": predicted.tolist(),
                "notes": list(self.images.notes),
            },
            "check": {**profile.check.model_dump(mode="json"), "n_overlays": profile.check.n_overlays},
            "why_strip": self.why_strip,
            "why_no_layers": self.why_no_layers,
            "canaries": self.canaries and self.canaries.to_record(),
            "boundary": profile.boundary.model_dump(mode="json"),
            "block": profile.block and profile.block.model_dump(mode="json"),
            "fused": profile.fused and profile.fused.model_dump(mode="json", exclude={"clean_scores"}),
            "second_opinions": [one.model_dump(mode="json") for one in profile.opinions],
            "accuracy": profile.calibration.accuracy,
            "mean_passes_clean": profile.calibration.mean_passes_clean,
            "entropy_bits": {
                "mean": float(means.mean()),
                "standard_deviation": float(means.std()),
                "smallest": float(means[0]),
                "largest": float(means[-1]),
                "quantiles": {f"{q:g}": float(np.quantile(means, q)) for q in _QUANTILES},
                "mean_per_overlay": self.overlay_entropies.tolist(),
            },
            "warnings": list(self.warnings()),
            "seed": profile.calibration.seed,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "seconds_total": round(sum(self.seconds.values()), 3),
            "device": self.device,
            "machine": dict(self.machine),
            "versions": profile.calibration.versions,
            "created": profile.calibration.created,
        }


@dataclass(frozen=True)
class CalibrationReport:
    """What was found, and where it was written.

    Attributes:
        artifact: The version directory.
    """

    artifact: Path
    findings: Findings

    def lines(self) -> Iterator[str]:
        """Yield the summary a person reads at the end."""
        found, profile = self.findings, self.findings.profile
        record, boundary = profile.calibration, profile.boundary
        yield (
            f"calibrated {profile.model_name} on {boundary.n_scores} of {record.n_images} images "
            f"in {sum(found.seconds.values()):.1f} s ({found.device})"
        )
        for label, text in self._facts():
            yield f"  {label:<18}{text}"
        for note in found.images.notes:
            yield f"note: {note}"
        for warning in found.warnings():
            yield f"warning: {warning}"
        yield f"next: {command_line('guard', 'serve', '--repository', self.artifact.parent.parent)}"

    def _facts(self) -> Iterator[tuple[str, str]]:
        profile = self.findings.profile
        record, source, check = profile.calibration, profile.input, profile.check
        seed = "" if record.seed is None else f", seed {record.seed}"
        accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.2%}"
        yield "input", f"{source.datatype} {source.layout} {source.shape}, {_input_text(self.findings)}"
        yield "output", f"{profile.output.classes} classes, {profile.output.kind}{accuracy}"
        computed = "" if check.precision == "exact" else f", computed in {check.precision}"
        yield "overlays", f"N = {check.n_overlays}, blend {check.blend}{seed}{computed}"
        yield "detector", self._detector_text()
        yield "threshold", f"{_value_text(profile.promise)}, {_method_text(profile.promise)}"
        yield "false rejections", _promise_text(profile.promise)
        block = profile.block if profile.fused is None else profile.fused.block
        if block is not None:
            yield "refused from", f"{_value_text(block)}, {_method_text(block)}"
            yield "", _promise_text(block)
        yield "mean passes", f"{record.mean_passes_clean:.2f} of {check.n_overlays} per clean input"
        told = {"canaries": self.findings.canaries, "second opinions": self.findings.second_opinions}
        for label, found in told.items():
            for place, line in enumerate(() if found is None else found.lines()):
                yield "" if place else label, line
        picture = "entropies.png" if profile.fused is None else "scores.png"
        yield "artifact", f"{self.artifact} (report.json and {picture} inside)"

    def _detector_text(self) -> str:
        fused, why = self.findings.profile.fused, self.findings.why_strip
        if fused is None:
            return "strip" + (f" (fused: {why})" if why else "")
        text = f"fused ({', '.join(fused.statistics)}), fitted on {fused.n_fitted} other images"
        off = self.findings.why_no_layers
        return f"{text}; layers are off: {off}" if off else text


def package_versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    return {
        "inference-guard": __version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "scipy": scipy.__version__,
    }


def machine() -> dict[str, str | int]:
    """Return what kind of machine this is; nothing that names it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_count": os.cpu_count() or 0,
    }


def _input_text(found: Findings) -> str:
    source, record = found.prepare.source, found.profile.preprocessing
    low, high = ("/".join(f"{value:.4g}" for value in end) for end in (source.low, source.high))
    steps = [_resize_text(record.resize)] if record.resize else []
    if record.crop:
        steps.append(f"cropped to {record.crop[0]} x {record.crop[1]}")
    if record.colour != "RGB":
        steps.append(f"colours as {record.colour}")
    if record.scale != 1.0 or record.mean != (0.0,) or record.std != (1.0,):
        steps.append(f"(v * {record.scale:.6g} - {_row(record.mean)}) / {_row(record.std)}")
    return f"values {low} to {high} ({', '.join([*steps, found.prepare.stored.origin])})"


def _resize_text(resize: tuple[int, ...]) -> str:
    if len(resize) == 1:
        return f"shorter side resized to {resize[0]}"
    return f"resized to {resize[0]} x {resize[1]}"


def _row(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _value_text(boundary: BoundaryRecord | ScoreBoundary) -> str:
    if isinstance(boundary, ScoreBoundary):
        return f"score {boundary.boundary:.4g}"
    return f"{boundary.boundary_bits:.4g} bits"


def _method_text(boundary: BoundaryRecord | ScoreBoundary) -> str:
    if boundary.rank is None:
        return f"normal, the {boundary.frr:.3%} percentile"
    return f"conformal, rank {boundary.rank} of {boundary.n_scores}"


def _promise_text(boundary: BoundaryRecord | ScoreBoundary) -> str:
    if boundary.certified_frr is None or boundary.confidence is None:
        return f"not guaranteed, aimed at {boundary.frr:.3%}"
    return (
        f"at most {boundary.certified_frr:.3%}, certified with {boundary.confidence:.1%} confidence "
        f"(expected {boundary.expected_frr:.3%})"
    )
