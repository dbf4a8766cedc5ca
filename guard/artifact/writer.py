"""Write an artifact in one step: it is there whole, or not at all."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from guard.arrays import Overlays
from guard.artifact.external_data import check_relative_path
from guard.artifact.fused_record import fused_bytes
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
    Manifest,
)
from guard.artifact.opinions import Opinions, opinions_bytes
from guard.artifact.probe import Probe, probe_bytes
from guard.artifact.profile import Profile
from guard.detection.measurements import Measures
from guard.errors import ArtifactError

__all__ = ["next_version", "place_next_version", "write_artifact"]

_OWN_NAMES = {*REQUIRED_FILES, PROBE_NAME, FUSED_NAME, OPINIONS_NAME, COPIES_NAME, MANIFEST_NAME}
_VERSION = re.compile(r"[1-9][0-9]*")
_DIRECTORY_MODE, _FILE_MODE = 0o750, 0o640


def next_version(model_directory: Path) -> int:
    """Return the version number after the highest one in ``model_directory`` (1 if none)."""
    if not model_directory.is_dir():
        return 1
    versions = (int(entry.name) for entry in model_directory.iterdir() if _VERSION.fullmatch(entry.name))
    return max(versions, default=0) + 1


def write_artifact(
    model_directory: Path,
    *,
    model: bytes,
    overlays: Overlays,
    profile: Profile,
    probe: Probe | None = None,
    measures: Measures | None = None,
    opinions: Opinions | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the next version of a model and return its directory.

    The files are written beside their final place, flushed to disk, and renamed into place
    together, so a reader never sees half an artifact.

    Overlays are secret: who knows them can train a trojan around them. Directories are written with mode
    0750 and files, ``overlays.npy`` included, with 0640, whatever the umask; a server under another user
    id reads them through their group.

    Args:
        model_directory: ``<repository>/<model>``; made if it is not there.
        model: Content of ``model.onnx``.
        overlays: N images in the model's input space and dtype, in the plan's order.
        profile: The profile; its ``model_sha256`` must be that of ``model``.
        probe: What the model answers to a few images, asked again whenever it is loaded; None for none.
        measures: The fused detector's tables; None where the detector is another.
        opinions: The second opinions that are on; None for none.
        extra_files: More files by relative name, such as the report or external weights.

    Raises:
        ArtifactError: If the directory cannot be written, or an extra file has the name of one
            of the artifact's own.
        UnsafePathError: If the name of an extra file leads out of the directory.
    """
    extra = {check_relative_path(name, "extra_files"): data for name, data in (extra_files or {}).items()}
    _check_names_are_free(extra)
    buffer = io.BytesIO()
    np.save(buffer, overlays, allow_pickle=False)
    files = {
        **extra,
        MODEL_NAME: model,
        OVERLAYS_NAME: buffer.getvalue(),
        PROFILE_NAME: (profile.model_dump_json(indent=2) + "\n").encode(),
    }
    if probe is not None:
        files[PROBE_NAME] = probe_bytes(probe)
    if measures is not None:
        files[FUSED_NAME] = fused_bytes(measures)
    if opinions is not None and opinions.each:
        files[OPINIONS_NAME] = opinions_bytes(opinions.each)
        if opinions.copies is not None:
            files[COPIES_NAME] = opinions.copies.SerializeToString(deterministic=True)
    files[MANIFEST_NAME] = Manifest.of(files).to_json()
    try:
        return place_next_version(model_directory, files)
    except OSError as error:
        raise ArtifactError(f"cannot write an artifact in {model_directory}: {error}; check --out") from error


def _check_names_are_free(extra: Mapping[str, bytes]) -> None:
    taken = sorted(_OWN_NAMES & set(extra))
    if taken:
        raise ArtifactError(
            f"extra_files holds {', '.join(taken)}, which the artifact writes itself; give it another name"
        )


def place_next_version(model_directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write files as the next version of a model, whole or not at all, and return its directory.

    Directories get mode 0750 and files 0640, whatever the umask.

    Args:
        model_directory: ``<repository>/<model>``; made if it is not there.
        files: Contents by plain relative name.

    Raises:
        OSError: If something cannot be written.
    """
    model_directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=model_directory))
    try:
        for name, data in files.items():
            _write_durably(staging / name, data)
        _restrict(staging)
        return _rename_to_next_version(staging, model_directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _restrict(staging: Path) -> None:
    for path in staging.rglob("*"):
        path.chmod(_DIRECTORY_MODE if path.is_dir() else _FILE_MODE)
    staging.chmod(_DIRECTORY_MODE)


def _rename_to_next_version(staging: Path, model_directory: Path) -> Path:
    """Take the next free version; if another writer was faster, the one after it."""
    while True:
        target = model_directory / str(next_version(model_directory))
        try:
            return staging.rename(target)
        except OSError:
            if not target.exists():
                raise


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
