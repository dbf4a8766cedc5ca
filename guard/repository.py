"""The model repository: ``<root>/<model>/<version>/``, Triton's layout."""

from __future__ import annotations

import re
from pathlib import Path

from guard.errors import MissingFileError

__all__ = ["find_models", "latest_version"]

_VERSION = re.compile(r"[1-9][0-9]*")


def find_models(root: Path) -> dict[str, Path]:
    """Return the directory of the latest version of every model in a repository.

    Directories whose names begin with a dot are passed over.

    Raises:
        MissingFileError: If the repository is not there, or holds no model.
    """
    if not root.is_dir():
        raise MissingFileError(
            f"model repository {root} is not a directory; make one with `guard calibrate --out`"
        )
    directories = sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not directories:
        raise MissingFileError(
            f"model repository {root} holds no model; expected {root}/<model>/<version>/: "
            f"make one with `guard calibrate --out {root}/<model>`"
        )
    return {directory.name: latest_version(directory) for directory in directories}


def latest_version(model_directory: Path) -> Path:
    """Return the version directory with the highest number.

    Raises:
        MissingFileError: If there is none.
    """
    versions = [
        entry for entry in model_directory.iterdir() if entry.is_dir() and _VERSION.fullmatch(entry.name)
    ]
    if not versions:
        raise MissingFileError(
            f"{model_directory} holds no version; expected a directory named 1, 2, …: "
            f"make one with `guard calibrate --out {model_directory}`"
        )
    return max(versions, key=lambda entry: int(entry.name))
