"""The model repository: ``<root>/<model>/<version>/``, Triton's layout."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

from guard.artifact.manifest import MANIFEST_NAME
from guard.errors import MissingFileError

__all__ = ["find_models", "find_versions", "latest_version"]

_log = logging.getLogger(__name__)

_VERSION = re.compile(r"[1-9][0-9]*")


def find_models(root: Path, *, may_be_empty: bool = False) -> dict[str, Path]:
    """Return the directory of the latest version of every model in a repository.

    Directories whose names begin with a dot are passed over, and so, with a warning, are those that hold
    no version or cannot be read: what a file system keeps for itself (``lost+found``) is no model.

    Args:
        root: The repository.
        may_be_empty: Whether there need be none.

    Raises:
        MissingFileError: If the repository is not there, cannot be read, or holds no model.
    """
    if not root.is_dir():
        raise MissingFileError(
            f"model repository {root} is not a directory; make one with `guard calibrate --out`"
        )
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise MissingFileError(f"model repository {root} cannot be read ({error}); allow it") from error
    models = {}
    for directory in (entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")):
        try:
            models[directory.name] = latest_version(directory)
        except (MissingFileError, OSError) as error:
            _log.warning(
                "passed over in the model repository", extra={"path": str(directory), "why": str(error)}
            )
    if not models and find_versions(root):
        raise MissingFileError(
            f"model repository {root} holds the versions of one model; expected the directory above it, "
            f"{root.resolve().parent}"
        )
    if not models and (root / MANIFEST_NAME).is_file():
        raise MissingFileError(
            f"model repository {root} is one version of a model; expected the directory two above it, "
            f"{root.resolve().parent.parent}"
        )
    if not models and not may_be_empty:
        raise MissingFileError(
            f"model repository {root} holds no model; expected {root}/<model>/<version>/: "
            f"make one with `guard calibrate --out {shlex.quote(str(root))}/<model>`"
        )
    return models


def find_versions(model_directory: Path) -> tuple[Path, ...]:
    """Return the version directories of a model, ascending; none where there is no such directory.

    Raises:
        OSError: If the directory cannot be read.
    """
    if not model_directory.is_dir():
        return ()
    versions = [
        entry for entry in model_directory.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir()
    ]
    return tuple(sorted(versions, key=lambda entry: int(entry.name)))


def latest_version(model_directory: Path) -> Path:
    """Return the version directory with the highest number.

    Raises:
        MissingFileError: If there is none.
    """
    versions = find_versions(model_directory)
    if not versions:
        raise MissingFileError(
            f"{model_directory} holds no version; expected a directory named 1, 2, …: "
            f"make one with `guard calibrate --out {shlex.quote(str(model_directory))}`"
        )
    return versions[-1]
