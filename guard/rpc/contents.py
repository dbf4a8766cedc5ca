"""The bytes of one tensor: raw blobs and typed fields into arrays, and arrays into raw blobs.

V2 carries a tensor's elements in one of two ways. *Raw*: one little-endian, row-major blob, which is
read in place. *Typed*: a protobuf field for a family of datatypes, in which everything narrower than
32 bits travels as 32 bits, so its range has to be checked. FP16 has no typed field; BYTES and BF16 are
no numbers to numpy, so the guard, which must blend what it is sent, does not take them.

A shape is the caller's claim. It is compared with the data that came before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from guard.arrays import DATATYPES
from guard.errors import InvalidRequestError
from guard.messages import Tensor
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["decode_raw", "decode_typed", "encode_raw", "encode_typed"]

_MAX_RANK: Final = 32  # the least that any numpy we run on can hold
_MAX_BYTES: Final = 2**63 - 1

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

    Raises:
        InvalidRequestError: If datatype, shape and byte count do not fit one another.
    """
    dtype = _dtype_of(name, datatype)
    expected = _element_count(name, shape, dtype.itemsize) * dtype.itemsize
    if len(blob) != expected:
        raise InvalidRequestError(
            f"input {name!r}: expected {expected} bytes for {datatype} {list(shape)}, got {len(blob)} bytes"
        )
    if datatype == "BOOL":
        _refuse_odd_booleans(name, blob)
    return np.frombuffer(blob, dtype).reshape(shape)


def decode_typed(
    name: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents
) -> np.ndarray:
    """Return the elements of the typed field that belongs to the datatype, as an array.

    Raises:
        InvalidRequestError: If the datatype has no typed field, another field is filled, the shape
            does not fit the number of elements, or an element is out of the datatype's range.
    """
    dtype = _dtype_of(name, datatype)
    if datatype not in _TYPED:
        raise InvalidRequestError(
            f"input {name!r}: {datatype} travels only in raw_input_contents; send it there"
        )
    field, wire_dtype = _TYPED[datatype]
    _refuse_other_fields(name, datatype, field, contents)
    values = getattr(contents, field)
    expected = _element_count(name, shape, dtype.itemsize)
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

    BYTES, which the guard takes nowhere but answers with (verdicts), has an array of numpy bytes; each
    element is sent as its length in 4 bytes and then itself.

    Raises:
        ValueError: If the array's dtype is not that of the tensor's datatype.
    """
    if tensor.datatype == "BYTES" and tensor.data.dtype.kind == "S":
        return b"".join(
            len(element).to_bytes(4, "little") + element for element in tensor.data.ravel().tolist()
        )
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None or tensor.data.dtype.newbyteorder("<") != dtype:
        raise ValueError(
            f"output {tensor.name!r}: expected an array of the datatype {tensor.datatype}, "
            f"got dtype {tensor.data.dtype}"
        )
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
    """Return the dtype of a datatype, or refuse one that the guard cannot read."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise InvalidRequestError(
            f"input {name!r}: datatype {datatype!r} is not accepted; expected one of {', '.join(DATATYPES)}"
        )
    return dtype


def _element_count(name: str, shape: Sequence[int], itemsize: int) -> int:
    """Return the product of a shape that an array could have, or refuse the shape."""
    if len(shape) > _MAX_RANK:
        raise InvalidRequestError(
            f"input {name!r}: expected at most {_MAX_RANK} dimensions, got {len(shape)}"
        )
    if any(size < 0 for size in shape):
        raise InvalidRequestError(f"input {name!r}: expected dimensions of 0 or more, got {list(shape)}")
    # An empty tensor may claim any size in its other dimensions and still match no bytes at all.
    if 0 in shape and math.prod(size for size in shape if size) * itemsize > _MAX_BYTES:
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
