"""ONNX models that keep weights in files beside them, read without leaving the directory.

ONNX names such a file in the model itself, so a hostile model may name any file of the
machine. Here each name must be a plain relative path inside the artifact, and its bytes come
from the caller, who has hashed them; nothing is opened by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

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
    if not name or name == "." or path.is_absolute() or ".." in path.parts or hostile:
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
            f"{where} is not an ONNX model ({error}); expected a file in ONNX format"
        ) from error
    if not model.graph.node:
        raise UnfitModelError(f"{where} holds an ONNX graph without nodes; expected an image classifier")
    return model


def external_files(model: onnx.ModelProto, where: str) -> tuple[str, ...]:
    """Return the names of the files a model keeps tensors in, each proven to stay inside.

    Raises:
        UnsafePathError: If one leads out of the directory.
    """
    names = {ExternalDataInfo(tensor).location for tensor in _external_tensors(model)}
    return tuple(sorted(check_relative_path(name, where) for name in names))


def inline_external_data(model: onnx.ModelProto, read: Callable[[str], bytes], where: str) -> None:
    """Move every external tensor into the model, in place.

    Args:
        model: The parsed model.
        read: Gives the verified bytes of a file named by :func:`external_files`.
        where: Name of the model, for errors.

    Raises:
        UnfitModelError: If a tensor points beyond the end of its file.
    """
    for tensor in _external_tensors(model):
        info = ExternalDataInfo(tensor)
        data = read(check_relative_path(info.location, where))
        start = info.offset or 0
        stop = len(data) if info.length is None else start + info.length
        if not 0 <= start <= stop <= len(data):
            raise UnfitModelError(
                f"{where}: tensor {tensor.name!r} wants bytes {start} to {stop} of {info.location!r}, "
                f"which has {len(data)}; export the model again"
            )
        tensor.raw_data = data[start:stop]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in _tensors(model.graph) if uses_external_data(tensor))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _tensors(graph)
