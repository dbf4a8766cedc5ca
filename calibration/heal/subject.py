"""The model that is to be healed: an artifact, whose settings the next version keeps, or a bare ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Num

from calibration.data import ImageSet
from calibration.errors import OptionError
from calibration.heal.options import HealOptions
from calibration.intake import geometry_of
from calibration.model_source import read_model
from calibration.options import Blend, CalibrateOptions, Detector, Threshold
from calibration.outputs import check_labels
from calibration.preprocessing import Transform, plan_input
from calibration.sources import read_images
from guard.artifact import MANIFEST_NAME, Profile, next_version, read_artifact
from guard.artifact.manifest import MODEL_NAME
from guard.artifact.precision import Precision
from guard.artifact.signature import Layout, Signature, read_signature
from guard.detection.capabilities.opinion import OPINIONS
from guard.errors import MissingFileError

__all__ = ["Check", "Subject", "fitting_transform", "read_clean", "read_subject"]

_FAR = 16
"""Float images that reach less than a sixteenth of what they were calibrated for are of another scale."""


@dataclass(frozen=True)
class Check:
    """How the next version is calibrated; as the artifact was, where it was given one.

    Attributes:
        name: Of the model in the profile; None for the last part of the directory.
        blend: Rule.
        rounds: Passes of each round of the check; None for what is usual for N.
        overlays: N.
        detector: Which decides; of a fused one ``auto``, for the next version may have fewer images.
        layers: Whether it may look inside the model; not where the model's own does not.
        capabilities: Second opinions to try.
        threshold: How the boundary is set.
        frr: False-rejection rate.
        block_frr: A lower one, for refusals; None for no such tier.
        confidence: Of its guarantee.
        precision: What the model computes in; TF32 is not kept, as a healing needs no GPU.
    """

    name: str | None = None
    blend: Blend = "add"
    rounds: tuple[int, ...] | None = None
    overlays: int = 32
    detector: Detector = "auto"
    layers: Literal["auto", "off"] = "auto"
    capabilities: tuple[str, ...] = OPINIONS
    threshold: Threshold = "conformal"
    frr: float = 0.01
    block_frr: float | None = None
    confidence: float = 0.95
    precision: Precision = "exact"

    def calibration(
        self, model: Path, data: Path, subject: Subject, transform: Transform, options: HealOptions
    ) -> CalibrateOptions:
        """Return the calibration of a model with some images.

        Raises:
            OptionError: If a value is out of its range, or the directory cannot be written.
        """
        return CalibrateOptions(
            model=model,
            data=data,
            class_names=subject.profile.output.labels if subject.profile is not None else None,
            out=subject.publish,
            name=self.name,
            overlays=self.overlays,
            detector=self.detector,
            layers=self.layers,
            capabilities=self.capabilities,
            rounds=self.rounds,
            blend=self.blend,
            threshold=self.threshold,
            frr=self.frr,
            block_frr=self.block_frr,
            confidence=self.confidence,
            precision=self.precision,
            transform=transform,
            layout=subject.layout,
            threads=options.threads,
            quiet=options.quiet,
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and how what it becomes is checked and where it goes.

    Attributes:
        where: As given.
        file: The ONNX file.
        sha256: Its digest.
        signature: Its tensors.
        layout: To read it with.
        publish: Model directory that gets the next version.
        check: Of the next version.
        profile: The artifact's; None for a bare file.
        artifact_sha256: Digest of the artifact; None for a bare file.
        version: Of the artifact.
    """

    where: str
    file: Path
    sha256: str
    signature: Signature
    layout: Layout | None
    publish: Path
    check: Check
    profile: Profile | None = None
    artifact_sha256: str | None = None
    version: str | None = None


def read_subject(options: HealOptions, healed: Sequence[tuple[Path, Path]] = ()) -> Subject:
    """Read the model.

    Args:
        options: Say which.
        healed: Versions that this very job published, and the versions that it made them from: where the
            highest version is one of the former, the latter is meant.

    Raises:
        OptionError: If it is neither an artifact nor an ONNX file, or there is nowhere to publish it.
        GuardError: If it cannot be read.
    """
    path = Path(options.model)
    if path.is_dir():
        return _from_artifact(_version_of(path, healed), options)
    if path.suffix.lower() != ".onnx":
        raise OptionError(
            f"MODEL {options.model}: expected an artifact, REPOSITORY/MODEL or REPOSITORY/MODEL/VERSION, or "
            f"an .onnx file" + ("" if path.exists() else "; there is nothing of that name")
        )
    if options.publish is None:
        raise OptionError(f"--publish is missing: {path} is no artifact; give REPOSITORY/MODEL")
    source = read_model(path)
    signature = read_signature(source.model, str(path), layout=options.layout, size=options.transform.size)
    check = _asked(Check(), options)
    return Subject(options.model, path, source.sha256, signature, options.layout, options.publish, check)


def _from_artifact(directory: Path, options: HealOptions) -> Subject:
    artifact = read_artifact(directory)
    profile, file = artifact.profile, directory / MODEL_NAME
    publish = options.publish or directory.parent
    size = _sized_as(profile, Transform()).size or options.transform.size
    source = read_model(file)
    signature = read_signature(source.model, str(file), layout=profile.input.layout, size=size)
    boundary = profile.boundary
    check = Check(
        name=profile.model_name if publish.resolve() == directory.parent.resolve() else None,
        blend=profile.check.blend,
        rounds=profile.check.rounds,
        overlays=profile.check.n_overlays,
        detector="strip" if profile.fused is None else "auto",
        layers="auto" if profile.fused is None or profile.fused.layers else "off",
        capabilities=tuple(one.name for one in profile.opinions),
        threshold=boundary.method,
        frr=boundary.frr,
        block_frr=None if profile.block is None else profile.block.frr,
        confidence=Check.confidence if boundary.confidence is None else boundary.confidence,
        precision="fp16" if profile.check.precision == "fp16" else "exact",
    )
    return Subject(
        options.model,
        file,
        source.sha256,
        signature,
        profile.input.layout,
        publish,
        _asked(check, options),
        profile,
        artifact.digest,
        artifact.version,
    )


def _version_of(path: Path, healed: Sequence[tuple[Path, Path]]) -> Path:
    """Return the artifact that a directory is, or its highest version."""
    if (path / MANIFEST_NAME).is_file():
        return path
    highest = next_version(path) - 1
    if not highest:
        inside = sorted(each.name for each in path.iterdir() if each.is_dir() and next_version(each) > 1)
        hint = f"; it is a repository, give {path / inside[0]}" if inside else ""
        raise MissingFileError(f"MODEL {path} holds no version, a directory named 1, 2, …{hint}")
    version = path / str(highest)
    for made, source in healed:
        if made.resolve() == version.resolve():
            return source
    return version


def _asked(check: Check, options: HealOptions) -> Check:
    """Return the settings with those that flags give in place of the artifact's."""
    names = ("blend", "overlays", "frr", "confidence")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "overlays" in asked and asked["overlays"] != check.overlays:
        asked["rounds"] = None
    return replace(check, **asked)


def read_clean(
    subject: Subject, options: HealOptions, data: Path, labels: Path | None
) -> tuple[ImageSet, Transform]:
    """Read images, and settle the preprocessing: what was asked for, else what the artifact says.

    Raises:
        GuardError: If they cannot be read, or are stored otherwise than those of the artifact.
    """
    wish = options.transform
    if subject.profile is not None and wish.sizing is None:
        wish = _sized_as(subject.profile, wish)
    images = read_images(data, labels, geometry_of(subject.signature, wish))
    classes = subject.signature.classes if subject.profile is None else subject.profile.output.classes
    if classes is not None:  # else the scan asks the model
        check_labels(images, classes)
    return images, fitting_transform(subject, images.images, wish, str(data))


def fitting_transform(
    subject: Subject, images: Num[np.ndarray, "n h w c"], wish: Transform, where: str
) -> Transform:
    """Return the preprocessing of images for a model, its value range told, so that parts have it too.

    Raises:
        OptionError: If it leads to another range than the artifact's.
    """
    stored_float = images.dtype != np.uint8
    if subject.profile is not None and subject.signature.datatype != "UINT8":
        wish = _as_profile(subject.profile, wish, stored_float)
        _check_scale(images, wish, where)
    prepare = plan_input(subject.signature, images, wish)
    if subject.profile is not None:
        _check_range(prepare.source.low, prepare.source.high, subject.profile, where)
    if stored_float:
        wish = replace(wish, value_range=(prepare.stored.low, prepare.stored.high))
    return wish


def _sized_as(profile: Profile, wish: Transform) -> Transform:
    return replace(wish, resize=profile.preprocessing.resize, crop=profile.preprocessing.crop)


def _as_profile(profile: Profile, wish: Transform, stored_float: bool) -> Transform:
    record, source = profile.preprocessing, profile.input
    low, high = (
        float(f"{(end[0] * record.std[0] + record.mean[0]) / record.scale:.6g}")
        for end in (source.low, source.high)
    )
    return replace(
        wish,
        scale=record.scale if wish.scale is None else wish.scale,
        mean=wish.mean or record.mean,
        std=wish.std or record.std,
        colour=wish.colour or record.colour,
        value_range=(wish.value_range or (low, high)) if stored_float else wish.value_range,
    )


def _check_scale(images: Num[np.ndarray, "n h w c"], wish: Transform, where: str) -> None:
    """Refuse images from 0 to 1 where the artifact says how those from 0 to 255 become the model's."""
    if wish.value_range is None or wish.scale == 1.0:
        return
    reach, expected = float(np.abs(images).max()), max(map(abs, wish.value_range))
    if reach * _FAR < expected:
        raise OptionError(
            f"--data {where}: the images reach {reach:g}, and the artifact's were stored up to {expected:g}, "
            f"which it multiplies by {wish.scale:g}; store them alike, or give --scale and --range"
        )


def _check_range(low: Sequence[float], high: Sequence[float], profile: Profile, where: str) -> None:
    source = profile.input
    same = np.allclose(np.broadcast_to(low, source.channels), source.low, rtol=1e-4, atol=1e-6)
    same = same and np.allclose(np.broadcast_to(high, source.channels), source.high, rtol=1e-4, atol=1e-6)
    if not same:
        raise OptionError(
            f"--data {where}: the images become values from {min(low):.4g} to {max(high):.4g}, and the "
            f"artifact was calibrated for {min(source.low):.4g} to {max(source.high):.4g}; store them as "
            f"those it was calibrated with, or give --scale, --mean, --std or --range as they were given then"
        )
