"""Read the ONNX model to calibrate, and the bytes of it that go into the artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx

from guard.artifact.external_data import external_files, inline_external_data, parse_model
from guard.artifact.manifest import sha256_of
from guard.errors import MissingFileError, UnfitModelError, UnsafePathError

__all__ = ["ModelSource", "read_model"]

_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class ModelSource:
    """A model as it was found.

    Attributes:
        path: Where it was found, as given.
        model: The parsed model, weights inline.
        data: Content of the artifact's ``model.onnx``: the file itself where it is self-contained, else
            the model with its external weights moved in.
        sha256: Digest of ``data``.
    """

    path: Path
    model: onnx.ModelProto
    data: bytes
    sha256: str


def read_model(path: Path) -> ModelSource:
    """Read an ONNX file, with weights from files beside it where it names any.

    Raises:
        MissingFileError: The file, or one that it names, is not there.
        UnsafePathError: It names a file outside its own directory.
        UnfitModelError: It is no ONNX model, or too large for one file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; expected an ONNX model, check the path")
    data, where = path.read_bytes(), str(path)
    model = parse_model(data, where)
    if external_files(model, where):
        inline_external_data(model, _reader_beside(path), where)
        data = _serialize(model, where)
    return ModelSource(path, model, data, sha256_of(data))


def _reader_beside(path: Path) -> Callable[[str], bytes]:
    folder = path.parent

    @cache
    def read(name: str) -> bytes:
        file = folder / name
        if not file.is_file():
            raise MissingFileError(
                f"{path} keeps weights in {name!r}, which is not in {folder}; put it there"
            )
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UnsafePathError(f"{file} is a link out of {folder}; put the file itself there")
        return file.read_bytes()

    return read


def _serialize(model: onnx.ModelProto, where: str) -> bytes:
    if model.ByteSize() > _PROTOBUF_LIMIT:
        raise UnfitModelError(
            f"{where} has {model.ByteSize() / 2**30:.1f} GiB of weights, and a model.onnx with its weights "
            f"inside holds at most 2 GiB; export a smaller model, or in float16"
        )
    return model.SerializeToString(deterministic=True)
