"""ONNX models that keep weights in files beside them, read without leaving the directory.

ONNX names such a file in the model itself, so a hostile model may name any file of the
machine. Here each name must be a plain relative path inside the artifact, and its bytes come
from the caller, who has hashed them; nothing is opened by name. Tensors are looked for in every
corner of the file (initializers, attributes, subgraphs, functions, sparse tensors), since one
that is left external would be opened by ONNX Runtime itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import onnx
from google.protobuf.message import DecodeError, Message

from guard.errors import UnfitModelError, UnsafePathError

__all__ = ["check_relative_path", "external_files", "inline_external_data", "parse_model"]


def check_relative_path(name: str, where: str) -> str:
    """Return ``name`` if it is a relative path that stays inside its directory.

    Raises:
        UnsafePathError: If it is absolute, climbs with ``..``, or holds a backslash, a drive
            letter or a NUL.
    """
    path = PurePosixPath(name)
    hostile = "\\" in name or "\0" in name or ":" in name
    if not path.parts or path.is_absolute() or ".." in path.parts or hostile:
        raise UnsafePathError(
            f"{where} names the file {name!r}, which leads out of the artifact's directory; "
            f"expected a plain relative path such as 'weights.bin'"
        )
    return path.as_posix()


def parse_model(data: bytes, where: str) -> onnx.ModelProto:
    """Parse an ONNX file without touching the files it may name.

    Raises:
        UnfitModelError: If the bytes are no ONNX model.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise UnfitModelError(
            f"{where} is not an ONNX model ({error}); expected a file in ONNX format: a PyTorch model is "
            f"exported with torch.onnx.export"
        ) from error
    if not model.graph.node:
        raise UnfitModelError(f"{where} holds an ONNX graph without nodes; expected an image classifier")
    return model


def external_files(model: onnx.ModelProto, where: str) -> tuple[str, ...]:
    """Return the names of the files a model keeps tensors in, each proven to stay inside.

    Raises:
        UnsafePathError: If one leads out of the directory.
        UnfitModelError: If an offset or length is no number.
    """
    names = {_range_of(tensor, where).name for tensor in _external_tensors(model)}
    return tuple(sorted(check_relative_path(name, where) for name in names))


def inline_external_data(model: onnx.ModelProto, read: Callable[[str], bytes], where: str) -> None:
    """Move every external tensor into the model, in place.

    Args:
        model: The parsed model.
        read: Gives the verified bytes of a file named by :func:`external_files`.
        where: Name of the model, for errors.

    Raises:
        UnfitModelError: If a tensor points beyond the end of its file, or its offset or length
            is no number.
    """
    for tensor in _external_tensors(model):
        part = _range_of(tensor, where)
        data = read(part.name)
        stop = len(data) if part.length is None else part.start + part.length
        if not 0 <= part.start <= stop <= len(data):
            raise UnfitModelError(
                f"{where}: tensor {tensor.name!r} wants bytes {part.start} to {stop} of {part.name!r}, "
                f"which has {len(data)}; export the model again"
            )
        tensor.raw_data = data[part.start : stop]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


@dataclass(frozen=True)
class _Range:
    """The part of a file that holds one tensor; without a length, all from ``start`` on."""

    name: str
    start: int
    length: int | None


def _range_of(tensor: onnx.TensorProto, where: str) -> _Range:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        start = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else None
    except ValueError as error:
        raise UnfitModelError(
            f"{where}: tensor {tensor.name!r} has an external offset or length that is no number ({error}); "
            f"export the model again"
        ) from error
    return _Range(check_relative_path(entries.get("location", ""), where), start, length)


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor in a message, however deep."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)
