"""Load a version beside the one that serves; whatever goes wrong with it stays with it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from guard.arrays import Overlays
from guard.artifact import MANIFEST_NAME, Artifact
from guard.artifact.manifest import sha256_of
from guard.control.compatibility import differences
from guard.control.memory import check_memory
from guard.errors import ArtifactError, CandidateError, GuardError
from guard.repository import find_versions
from guard.runtime.loader import LoadedModel

__all__ = [
    "Load",
    "check_digest",
    "is_its_own",
    "load_candidate",
    "manifest_digest",
    "reason_of",
    "require_there",
    "state_of",
    "versions_in",
]

Load = Callable[[str, Path, Callable[[Artifact], None]], LoadedModel]
"""Loads the artifact in a directory under a name; shows it to the third argument before it runs anything."""

_TRIED: Final = 4
_NO_ROOM: Final = re.compile("bad_alloc|out of memory|allocate memory", re.IGNORECASE)
"""What ONNX Runtime says, on CPU and CUDA, of a model that it has no memory for just now."""


def load_candidate(
    load: Load, served: LoadedModel, directory: Path, *, digest: str, free_bytes: Callable[[], int | None]
) -> LoadedModel:
    """Load a version of a model that is served, ready to take over (blocks).

    Args:
        load: Loads it.
        served: What serves now; it is only looked at.
        directory: The version's artifact.
        digest: SHA-256 that its manifest must have; empty for any.
        free_bytes: Memory there is, see :func:`~guard.control.memory.available_bytes`.

    Raises:
        CandidateError: If it cannot come to serve, whatever the reason.
    """
    examination = _Examination(served, digest)
    try:
        check_memory(directory, free_bytes())
        candidate = load(served.name, directory, examination.approve)
        try:
            examination.check_answers(candidate)
        except BaseException:
            candidate.close()
            raise
    except Exception as error:  # whatever a candidate does must not reach what serves
        raise CandidateError(
            f"version {directory.name!r} of model {served.name!r} cannot come to serve: {reason_of(error)}; "
            f"version {served.version!r} serves on",
            its_own=is_its_own(error),
            reason=reason_of(error),
        ) from error
    return candidate


def versions_in(directory: Path) -> tuple[str, ...]:
    """Return the versions of a model, ascending; none where they cannot be listed (blocks)."""
    try:
        return tuple(path.name for path in find_versions(directory))
    except OSError:
        return ()


def require_there(version: str, directory: Path, served: LoadedModel) -> None:
    """Refuse a version that is not in the repository (blocks).

    Raises:
        CandidateError: Naming those that are.
    """
    there = versions_in(directory)
    if version not in there:
        raise CandidateError(
            f"version {version!r} of model {served.name!r} is not in the repository, expected one of "
            f"{list(there)}; version {served.version!r} serves on",
            reason=f"it is not in the repository, expected one of {list(there)}",
        )


def check_digest(artifact: Artifact, digest: str) -> None:
    """Refuse an artifact that is not the one that is meant.

    Raises:
        CandidateError: If its digest is another; an empty ``digest`` means any.
    """
    if digest and artifact.digest != digest:
        raise CandidateError(
            f"{artifact.directory} has the digest {artifact.digest}, expected {digest}; it is not the "
            f"artifact that is meant: restore that one"
        )


def manifest_digest(directory: Path) -> str:
    """Return the SHA-256 of an artifact's manifest; empty where there is none to read."""
    try:
        return sha256_of((directory / MANIFEST_NAME).read_bytes())
    except OSError:
        return ""


def state_of(directory: Path) -> str:
    """Return what changes whenever a file of an artifact does: a digest of names, sizes and times."""
    seen = hashlib.sha256(manifest_digest(directory).encode())
    with suppress(OSError):  # gone since: another state than when it is there
        for path in sorted(directory.rglob("*")):
            status = path.stat()
            seen.update(f"{path!r} {status.st_size} {status.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def is_its_own(error: Exception) -> bool:
    """Return whether a version will fail so again until its files change.

    Not so where there was no room for it, a disk failed, another digest was meant, or for a reason that
    nobody knows: trying again costs a load, and never trying again a version that may be sound.
    """
    if isinstance(error, CandidateError):
        return error.its_own
    by_accident = isinstance(error.__cause__, OSError) or _NO_ROOM.search(str(error)) is not None
    return isinstance(error, ArtifactError) and not by_accident


def reason_of(error: Exception) -> str:
    """Return in one line why a version cannot be served."""
    lines = str(error).strip().splitlines() or [""]
    return str(error) if isinstance(error, GuardError) else f"{type(error).__name__}: {lines[0]}"


@dataclass
class _Examination:
    """What a candidate is asked beyond what every model is asked on loading."""

    served: LoadedModel
    digest: str
    images: Overlays | None = None

    def approve(self, artifact: Artifact) -> None:
        """Refuse another artifact than is meant, and one that clients would have to be changed for."""
        check_digest(artifact, self.digest)
        different = differences(self.served.profile, artifact.profile)
        if different:
            raise CandidateError(
                f"it has {'; '.join(different)}, so clients would fail; serve it under another name",
                its_own=True,
            )
        self.images = artifact.overlays[:_TRIED].copy()

    def check_answers(self, candidate: LoadedModel) -> None:
        """Refuse a model that has no answer to clean images; a probe has shown more than that already."""
        if candidate.probed or self.images is None:
            return
        if not np.isfinite(candidate.classifier.logits(self.images)).all():
            raise CandidateError(
                "it answers clean images with NaN or infinite scores; repair the model", its_own=True
            )
