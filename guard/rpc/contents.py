"""The bytes of one tensor: raw blobs and typed fields into arrays, and arrays into raw blobs.

V2 carries a tensor's elements in one of two ways. *Raw*: one little-endian, row-major blob, which is
read in place. *Typed*: a protobuf field for a family of datatypes, in which everything narrower than
32 bits travels as 32 bits, so its range has to be checked. FP16 and BF16 have no typed field. BF16, for
which numpy has no dtype, is read into float32, which holds each of its values. BYTES are elements of any
length, raw with a length of 4 bytes before each; they are read into an array of Python's bytes.

A shape is the caller's claim. It is compared with the data that came before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from guard.arrays import DATATYPES, HELD, from_bfloat16, to_bfloat16
from guard.errors import InvalidRequestError
from guard.messages import Tensor
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["decode_raw", "decode_typed", "encode_raw", "encode_typed"]

_MAX_RANK: Final = 32  # the least that any numpy we run on can hold
_MAX_ELEMENTS_OF_ANY: Final = (2**63 - 1) // 8
_MAX_ELEMENTS: Final = 4096  # of BYTES: each costs the event loop time, an empty one as much
_LENGTH_BYTES: Final = 4

_BFLOAT16_BITS: Final = np.dtype("<u2")
_INT32 = np.dtype(np.int32)
_UINT32 = np.dtype(np.uint32)
_TYPED: Final = MappingProxyType(
    {
        "BOOL": ("bool_contents", DATATYPES["BOOL"]),
        "UINT8": ("uint_contents", _UINT32),
        "UINT16": ("uint_contents", _UINT32),
        "UINT32": ("uint_contents", _UINT32),
        "UINT64": ("uint64_contents", DATATYPES["UINT64"]),
        "INT8": ("int_contents", _INT32),
        "INT16": ("int_contents", _INT32),
        "INT32": ("int_contents", _INT32),
        "INT64": ("int64_contents", DATATYPES["INT64"]),
        "FP32": ("fp32_contents", DATATYPES["FP32"]),
        "FP64": ("fp64_contents", DATATYPES["FP64"]),
    }
)
"""Datatype → the field of InferTensorContents it travels in, and the dtype of that field."""


def decode_raw(name: str, datatype: str, shape: Sequence[int], blob: bytes) -> np.ndarray:
    """Return the blob as a read-only array of that datatype and shape, without copying it.

    BF16 comes as a new array of float32, BYTES as a new array of Python's bytes.

    Raises:
        InvalidRequestError: If datatype, shape and byte count do not fit one another.
    """
    if datatype == "BYTES":
        return _array_of(_split(name, shape, blob), shape)
    dtype = _dtype_of(name, datatype)
    expected = _element_count(name, shape) * dtype.itemsize
    if len(blob) != expected:
        raise InvalidRequestError(
            f"input {name!r}: expected {expected} bytes for {datatype} {list(shape)}, got {len(blob)} bytes"
        )
    if datatype == "BOOL":
        _refuse_odd_booleans(name, blob)
    array = np.frombuffer(blob, dtype).reshape(shape)
    return from_bfloat16(array) if datatype == "BF16" else array


def decode_typed(
    name: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents
) -> np.ndarray:
    """Return the elements of the typed field that belongs to the datatype, as an array.

    Raises:
        InvalidRequestError: If the datatype has no typed field, another field is filled, the shape
            does not fit the number of elements, or an element is out of the datatype's range.
    """
    if datatype == "BYTES":
        _refuse_other_fields(name, datatype, "bytes_contents", contents)
        _require_elements(name, shape, len(contents.bytes_contents))
        return _array_of(list(contents.bytes_contents), shape)
    dtype = _dtype_of(name, datatype)
    if datatype not in _TYPED:
        raise InvalidRequestError(
            f"input {name!r}: {datatype} travels only in raw_input_contents; send it there"
        )
    field, wire_dtype = _TYPED[datatype]
    _refuse_other_fields(name, datatype, field, contents)
    values = getattr(contents, field)
    expected = _element_count(name, shape)
    if len(values) != expected:
        raise InvalidRequestError(
            f"input {name!r}: expected {expected} elements for {datatype} {list(shape)}, "
            f"got {len(values)} in {field}"
        )
    wide = np.fromiter(values, wire_dtype, count=len(values))
    if wire_dtype.itemsize > dtype.itemsize:
        _refuse_out_of_range(name, datatype, field, wide)
    return wide.astype(dtype, copy=False).reshape(shape)


def encode_raw(tensor: Tensor) -> bytes:
    """Return the tensor's elements as a little-endian, row-major blob.

    BYTES, here verdicts and classifications, has an array of numpy bytes; each element is sent as its length
    in 4 bytes and then itself. BF16 has an array of float32, which is rounded.

    Raises:
        ValueError: If the array's dtype is not that of the tensor's datatype.
    """
    if tensor.datatype == "BYTES" and tensor.data.dtype.kind == "S":
        return b"".join(
            len(element).to_bytes(_LENGTH_BYTES, "little") + element
            for element in tensor.data.ravel().tolist()
        )
    dtype = HELD.get(tensor.datatype)
    if dtype is None or tensor.data.dtype.newbyteorder("<") != dtype:
        raise ValueError(
            f"output {tensor.name!r}: expected an array of the datatype {tensor.datatype}, "
            f"got dtype {tensor.data.dtype}"
        )
    if tensor.datatype == "BF16":
        return to_bfloat16(tensor.data).tobytes()
    return tensor.data.astype(dtype, copy=False).tobytes()


def encode_typed(tensor: Tensor) -> pb.InferTensorContents:
    """Return the tensor's elements in the typed field of its datatype.

    Raises:
        ValueError: If the datatype has no typed field, or the array is not of it.
    """
    if tensor.datatype == "BYTES" and tensor.data.dtype.kind == "S":
        return pb.InferTensorContents(bytes_contents=tensor.data.ravel().tolist())
    if tensor.datatype not in _TYPED or tensor.data.dtype != DATATYPES[tensor.datatype]:
        raise ValueError(
            f"output {tensor.name!r}: expected an array of a datatype with a typed field, got "
            f"{tensor.datatype} in dtype {tensor.data.dtype}"
        )
    contents = pb.InferTensorContents()
    getattr(contents, _TYPED[tensor.datatype][0]).extend(tensor.data.ravel().tolist())
    return contents


def _dtype_of(name: str, datatype: str) -> np.dtype[np.generic]:
    """Return the dtype that a datatype has on the wire, or refuse one that the guard cannot read."""
    dtype = _BFLOAT16_BITS if datatype == "BF16" else DATATYPES.get(datatype)
    if dtype is None:
        raise InvalidRequestError(
            f"input {name!r}: datatype {datatype!r} is not accepted; "
            f"expected one of {', '.join((*HELD, 'BYTES'))}"
        )
    return dtype


def _split(name: str, shape: Sequence[int], blob: bytes) -> list[bytes]:
    """Return the elements of a BYTES blob, each a length of 4 bytes, little-endian, and as many bytes."""
    count = _require_elements(name, shape, None)
    elements: list[bytes] = []
    at = 0
    for number in range(count):
        start = at + _LENGTH_BYTES
        at = start if start > len(blob) else start + int.from_bytes(blob[at:start], "little")
        if at > len(blob):
            raise InvalidRequestError(
                f"input {name!r}: element {number} of {count} ends at byte {at} of {len(blob)} bytes; "
                f"before each element goes its length, 4 bytes, little-endian"
            )
        elements.append(blob[start:at])
    if at != len(blob):
        raise InvalidRequestError(
            f"input {name!r}: expected {count} elements for BYTES {list(shape)}, got {len(blob) - at} bytes "
            f"behind the last of them"
        )
    return elements


def _require_elements(name: str, shape: Sequence[int], got: int | None) -> int:
    """Return how many elements a BYTES shape has, or refuse it; ``got`` have come where that is known."""
    expected = _element_count(name, shape)
    if expected > _MAX_ELEMENTS:
        raise InvalidRequestError(
            f"input {name!r}: expected at most {_MAX_ELEMENTS} elements of BYTES, got shape {list(shape)}"
        )
    if got is not None and got != expected:
        raise InvalidRequestError(
            f"input {name!r}: expected {expected} elements for BYTES {list(shape)}, "
            f"got {got} in bytes_contents"
        )
    return expected


def _array_of(elements: list[bytes], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _element_count(name: str, shape: Sequence[int]) -> int:
    """Return the product of a shape that an array could have, or refuse the shape.

    One that could have it in the widest dtype, for elements may be held in more bytes than they came in.
    """
    if len(shape) <= _MAX_RANK and min(shape, default=1) > 0:
        return math.prod(shape)
    if len(shape) > _MAX_RANK:
        raise InvalidRequestError(
            f"input {name!r}: expected at most {_MAX_RANK} dimensions, got {len(shape)}"
        )
    if any(size < 0 for size in shape):
        raise InvalidRequestError(f"input {name!r}: expected dimensions of 0 or more, got {list(shape)}")
    # An empty tensor may claim any size in its other dimensions and still match no bytes at all.
    if 0 in shape and math.prod(size for size in shape if size) > _MAX_ELEMENTS_OF_ANY:
        raise InvalidRequestError(f"input {name!r}: shape {list(shape)} is too large for any array")
    return math.prod(shape)


def _refuse_other_fields(name: str, datatype: str, field: str, contents: pb.InferTensorContents) -> None:
    """Refuse contents in which a field of another datatype is filled."""
    others = [present.name for present, _ in contents.ListFields() if present.name != field]
    if others:
        raise InvalidRequestError(
            f"input {name!r}: {datatype} travels in contents.{field}, got {', '.join(others)}"
        )


def _refuse_out_of_range(name: str, datatype: str, field: str, wide: np.ndarray) -> None:
    """Refuse elements that the 32-bit field can hold and the datatype cannot."""
    limits = np.iinfo(DATATYPES[datatype].str)
    outside = wide[(wide < limits.min) | (wide > limits.max)]
    if outside.size:
        raise InvalidRequestError(
            f"input {name!r}: {datatype} holds {limits.min} to {limits.max}, got {outside[0]} in {field}"
        )


def _refuse_odd_booleans(name: str, blob: bytes) -> None:
    """Refuse a BOOL blob with a byte that is neither 0 nor 1, for which numpy promises nothing."""
    largest = np.frombuffer(blob, np.uint8).max(initial=0)
    if largest > 1:
        raise InvalidRequestError(f"input {name!r}: a BOOL byte is 0 or 1, got {largest}")
