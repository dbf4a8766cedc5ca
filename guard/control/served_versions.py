"""Which version of each model serves, kept on disk, so that a restart serves what served before."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.errors import SettingsError

__all__ = ["FILE_NAME", "ModelRecord", "ServedVersion", "ServedVersions"]

FILE_NAME: Final = "served.json"
_KEPT: Final = 16
_FILE_MODE: Final = 0o640

Version = Annotated[str, Field(pattern=r"^[1-9][0-9]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ServedVersion(BaseModel):
    """A version that served, and the digest of the artifact that it was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version
    digest: Sha256


class ModelRecord(BaseModel):
    """What served as one model.

    Attributes:
        current: What serves.
        history: What served before and can be rolled back to, the latest first.
        newest: The highest version that ever served; a watcher takes none that is not higher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    current: ServedVersion
    history: tuple[ServedVersion, ...] = ()
    newest: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, first: ServedVersion) -> ModelRecord:
        """Return the record of a model that serves for the first time."""
        return cls(current=first, newest=int(first.version))

    def swapped_to(self, new: ServedVersion) -> ModelRecord:
        """Return the record after a swap; what served until then is rolled back to first."""
        past = [old for old in (self.current, *self.history) if old.version != new.version]
        return self._serving(new, list({old.version: old for old in reversed(past)}.values())[::-1])

    def rolled_back(self) -> ModelRecord:
        """Return the record after a rollback; what was rolled back from is not gone back to."""
        return self._serving(self.history[0], list(self.history[1:]))

    def _serving(self, new: ServedVersion, history: list[ServedVersion]) -> ModelRecord:
        newest = max(self.newest, int(new.version))
        return ModelRecord(current=new, history=tuple(history[:_KEPT]), newest=newest)


class _File(BaseModel):
    """Content of the file."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    models: dict[str, ModelRecord] = {}


class ServedVersions:
    """The records of all models, in ``<state_dir>/served.json``.

    Args:
        state_dir: Made when it is first written to; None to keep no record beyond this process.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._path = state_dir / FILE_NAME if state_dir is not None else None
        self._content = _File()
        self._lock = threading.Lock()

    def read(self) -> dict[str, ModelRecord]:
        """Return what the file says; nothing if there is none.

        Raises:
            SettingsError: If it cannot be read or makes no sense; it is written anew at the next swap.
        """
        if self._path is None:
            return {}
        try:
            self._content = _File.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(
                f"{self._path} cannot be used to tell which versions served ({reason}); the highest ones are "
                f"served: look whether they are the right ones, and swap where not"
            ) from error
        return dict(self._content.models)

    def write(self, model: str, record: ModelRecord) -> None:
        """Keep the record of a model; the file is there whole, old or new, whatever happens (blocks).

        Raises:
            OSError: If it cannot be written.
        """
        with self._lock:
            self._content.models[model] = record
            if self._path is not None:
                _replace(self._path, self._content.model_dump_json(indent=2).encode() + b"\n")


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(_FILE_MODE)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
