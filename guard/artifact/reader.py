"""Read an artifact: every file hashed first, and only the hashed bytes used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from guard.arrays import HELD, Overlays
from guard.artifact.external_data import (
    check_relative_path,
    external_files,
    inline_external_data,
    parse_model,
)
from guard.artifact.fused_record import read_measures
from guard.artifact.manifest import (
    COPIES_NAME,
    FUSED_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    OPINIONS_NAME,
    OVERLAYS_NAME,
    PROBE_NAME,
    PROFILE_NAME,
    REQUIRED_FILES,
    FileRecord,
    Manifest,
    parse_json_record,
    sha256_of,
)
from guard.artifact.npy import NPY_ERRORS, load_npy
from guard.artifact.opinions import Opinions, read_copies, read_opinions
from guard.artifact.probe import Probe, read_probe
from guard.artifact.profile import Profile
from guard.detection.capabilities.opinion import Space
from guard.detection.measurements import Measures
from guard.errors import (
    ArtifactError,
    HashMismatchError,
    MissingFileError,
    ProfileError,
    UnsafePathError,
)

__all__ = ["NPY_ERRORS", "Artifact", "load_npy", "read_artifact"]


@dataclass(frozen=True)
class Artifact:
    """A verified artifact.

    Attributes:
        directory: Where it was read from.
        version: Name of that directory.
        digest: SHA-256 of the manifest, which stands for the whole artifact.
        model: The parsed model, weights inline.
        overlays: N clean images in the model's input space and dtype, in the plan's order.
        profile: The profile.
        probe: What the model answered when it was calibrated; None in artifacts that hold none.
        measures: The fused detector's tables; None where the detector is another.
        opinions: The second opinions that are on; None where none is.
    """

    directory: Path
    version: str
    digest: str
    model: onnx.ModelProto
    overlays: Overlays
    profile: Profile
    probe: Probe | None
    measures: Measures | None
    opinions: Opinions | None = None


def read_artifact(directory: Path) -> Artifact:
    """Read and verify the artifact in ``directory``.

    Raises:
        MissingFileError: A listed or required file is not there.
        HashMismatchError: A file's content is not what the manifest lists.
        UnsafePathError: A name in the manifest or the model leads out of the directory.
        UnsafeArrayError: ``overlays.npy``, ``probe.npz``, ``fused.npz`` or ``opinions.npz`` holds pickled
            objects.
        ProfileError: The profile, the manifest, the probe or a table is malformed, or of another model.
        UnfitModelError: ``model.onnx`` or ``amplified.onnx`` is no ONNX model.
    """
    directory = Path(directory)
    manifest_bytes = _read_inside(directory, MANIFEST_NAME)
    manifest = parse_json_record(Manifest, manifest_bytes, str(directory / MANIFEST_NAME))
    files = _read_listed(directory, manifest)
    profile = parse_json_record(Profile, files[PROFILE_NAME], str(directory / PROFILE_NAME))
    _check_same_model(profile, files[MODEL_NAME], directory)
    model = _load_model(directory, files)
    overlays = _load_overlays(files[OVERLAYS_NAME], profile, str(directory / OVERLAYS_NAME))
    probe = None
    if PROBE_NAME in files:
        probe = read_probe(files[PROBE_NAME], profile, str(directory / PROBE_NAME))
    measures = _read_measures(files, profile, directory) if profile.fused is not None else None
    opinions = _read_opinions(files, profile, 0 if probe is None else len(probe.images), directory)
    digest = sha256_of(manifest_bytes)
    return Artifact(directory, directory.name, digest, model, overlays, profile, probe, measures, opinions)


def _read_measures(files: dict[str, bytes], profile: Profile, directory: Path) -> Measures:
    where = str(directory / FUSED_NAME)
    if FUSED_NAME not in files:
        raise MissingFileError(f"{where} is missing, which the detector 'fused' needs; calibrate again")
    widths = tuple(layer.width for layer in profile.fused.layers) if profile.fused is not None else ()
    n_overlays, classes = profile.check.n_overlays, profile.output.classes
    measures = read_measures(files[FUSED_NAME], classes, n_overlays, widths, where)
    if measures.strata is None and profile.fused is not None and "stratified" in profile.fused.statistics:
        raise ProfileError(f"{where} holds no strata, which statistic 'stratified' needs; calibrate again")
    return measures


def _read_opinions(
    files: dict[str, bytes], profile: Profile, probed: int, directory: Path
) -> Opinions | None:
    on = {record.name: record.n_clean for record in profile.opinions if record.on}
    needed = [OPINIONS_NAME] if on else []
    needed += [COPIES_NAME] if "ibd_psc" in on else []
    for name in needed:
        if name not in files:
            raise MissingFileError(
                f"{directory / name} is missing, which {', '.join(on)} need; calibrate again"
            )
    if not on:
        return None
    source, where = profile.input, str(directory / OPINIONS_NAME)
    space = Space(source.value_range, source.datatype)
    each = read_opinions(files[OPINIONS_NAME], on, space, profile.output.classes, probed, where)
    copies = None
    if COPIES_NAME in needed:
        copies = read_copies(files[COPIES_NAME], profile.output.classes, str(directory / COPIES_NAME))
    return Opinions(each, copies)


def _remedy(directory: Path, name: str) -> str:
    versions = [path for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
    if name == MANIFEST_NAME and versions:
        newest = max(versions, key=lambda path: int(path.name))
        return f"{directory} holds versions of a model: name one of them, such as {newest}"
    if name == MANIFEST_NAME and (inside := min(directory.glob(f"*/*/{MANIFEST_NAME}"), default=None)):
        return f"{directory} is a repository of models: name a version of one, such as {inside.parent}"
    return "restore it or run `guard calibrate` again"


def _read_inside(directory: Path, name: str) -> bytes:
    path = directory / check_relative_path(name, str(directory / MANIFEST_NAME))
    if not directory.is_dir():
        raise MissingFileError(f"{directory} is not a directory; expected an artifact with {MANIFEST_NAME}")
    try:
        if not path.is_file():
            raise MissingFileError(f"{path} is missing; {_remedy(directory, name)}")
        if not path.resolve().is_relative_to(directory.resolve()):
            raise UnsafePathError(f"{path} is a link out of {directory}; put the file itself there")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); check its name and permissions"
        ) from error


def _read_listed(directory: Path, manifest: Manifest) -> dict[str, bytes]:
    absent = [name for name in REQUIRED_FILES if name not in manifest.files]
    if absent:
        raise MissingFileError(
            f"{directory / MANIFEST_NAME} does not list {', '.join(absent)}; "
            f"expected {', '.join(REQUIRED_FILES)}"
        )
    files = {name: _read_inside(directory, name) for name in manifest.files}
    for name, data in files.items():
        _check_hash(directory / name, data, manifest.files[name])
    return files


def _check_hash(path: Path, data: bytes, record: FileRecord) -> None:
    actual = sha256_of(data)
    if actual != record.sha256:
        raise HashMismatchError(
            f"{path}: expected SHA-256 {record.sha256[:16]}… ({record.bytes} bytes), got {actual[:16]}… "
            f"({len(data)} bytes); the file was changed after calibration: restore it or calibrate again"
        )


def _check_same_model(profile: Profile, model_bytes: bytes, directory: Path) -> None:
    actual = sha256_of(model_bytes)
    if profile.model_sha256 != actual:
        raise ProfileError(
            f"{directory / PROFILE_NAME} was measured on another model: it names model SHA-256 "
            f"{profile.model_sha256[:16]}…, {MODEL_NAME} is {actual[:16]}…; calibrate this model"
        )


def _load_model(directory: Path, files: dict[str, bytes]) -> onnx.ModelProto:
    where = str(directory / MODEL_NAME)
    model = parse_model(files[MODEL_NAME], where)
    for name in external_files(model, where):
        if name not in files:
            raise MissingFileError(
                f"{where} keeps weights in {name!r}, which {MANIFEST_NAME} does not list; calibrate again"
            )
    inline_external_data(model, files.__getitem__, where)
    return model


def _load_overlays(data: bytes, profile: Profile, where: str) -> Overlays:
    overlays = load_npy(data, where)
    expected_shape = (profile.check.n_overlays, *profile.input.shape)
    expected_dtype = HELD[profile.input.datatype]
    if overlays.shape != expected_shape or overlays.dtype != expected_dtype:
        raise ProfileError(
            f"{where}: expected shape {expected_shape} of {expected_dtype} as the profile says, "
            f"got {overlays.shape} of {overlays.dtype}; calibrate again"
        )
    if not np.isfinite(overlays.astype(np.float32)).all():
        raise ProfileError(f"{where} holds NaN or infinite values; calibrate again with finite images")
    return overlays
