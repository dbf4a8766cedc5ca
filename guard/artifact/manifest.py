"""``manifest.json``: the SHA-256 and size of every file of an artifact."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.errors import ProfileError

__all__ = [
    "COPIES_NAME",
    "FUSED_NAME",
    "MANIFEST_NAME",
    "MODEL_NAME",
    "OPINIONS_NAME",
    "OVERLAYS_NAME",
    "PROBE_NAME",
    "PROFILE_NAME",
    "REQUIRED_FILES",
    "FileRecord",
    "Manifest",
    "parse_json_record",
    "sha256_of",
]

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
OVERLAYS_NAME = "overlays.npy"
PROBE_NAME = "probe.npz"
FUSED_NAME = "fused.npz"
OPINIONS_NAME = "opinions.npz"
COPIES_NAME = "amplified.onnx"
PROFILE_NAME = "profile.json"
REQUIRED_FILES = (MODEL_NAME, OVERLAYS_NAME, PROFILE_NAME)


Record = TypeVar("Record", bound=BaseModel)


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


class FileRecord(BaseModel):
    """Digest and size of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """File names, relative to the artifact's directory, with their records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    files: dict[str, FileRecord]

    @classmethod
    def of(cls, files: dict[str, bytes]) -> Manifest:
        """Return the manifest of the given file contents."""
        records = {name: FileRecord(sha256=sha256_of(data), bytes=len(data)) for name, data in files.items()}
        return cls(files=dict(sorted(records.items())))

    def to_json(self) -> bytes:
        """Return the manifest's file content; the same manifest always gives the same bytes."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def parse_json_record(kind: type[Record], data: bytes, where: str) -> Record:
    """Parse JSON into a record, turning pydantic's report into one clear error.

    Raises:
        ProfileError: Naming the file, the first wrong field, and how many more there are.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        rest = f" (and {len(more)} more)" if more else ""
        raise ProfileError(
            f"{where}: {field}: {first['msg']}, got {_shorten(first['input'])}{rest}; "
            f"write the artifact again with `guard calibrate`"
        ) from error


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
