"""ONNX tensors and element types as torch's; every floating-point type becomes float32.

A model stored in half precision is trained in single precision, since updates are lost in fewer bits; what it
takes and gives keeps its type at export.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from guard.errors import UnfitModelError

__all__ = ["DTYPES", "dtype_of", "tensor_from"]

DTYPES: Final[Mapping[int, torch.dtype]] = MappingProxyType(
    {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float32,
        TensorProto.BFLOAT16: torch.float32,
        TensorProto.DOUBLE: torch.float32,
        TensorProto.UINT8: torch.uint8,
        TensorProto.INT8: torch.int8,
        TensorProto.INT16: torch.int16,
        TensorProto.UINT16: torch.int32,
        TensorProto.INT32: torch.int32,
        TensorProto.UINT32: torch.int64,
        TensorProto.INT64: torch.int64,
        TensorProto.UINT64: torch.int64,
        TensorProto.BOOL: torch.bool,
    }
)
"""Element types that are known, and what they become."""


def dtype_of(element: int, where: str) -> torch.dtype:
    """Return the torch type of an ONNX element type.

    Raises:
        UnfitModelError: If it has none, as strings and 8-bit floats have none.
    """
    if element not in DTYPES:
        raise UnfitModelError(
            f"{where} is of type {TensorProto.DataType.Name(element)}, which cannot be trained; expected one "
            f"of {', '.join(TensorProto.DataType.Name(known) for known in DTYPES)}"
        )
    return DTYPES[element]


def tensor_from(proto: onnx.TensorProto) -> torch.Tensor:
    """Return the tensor, its weights copied out of the model.

    Raises:
        UnfitModelError: If its type is unknown, or its weights lie in another file.
    """
    where = f"tensor {proto.name!r}"
    dtype = dtype_of(proto.data_type, where)
    if proto.data_location == TensorProto.EXTERNAL:
        raise UnfitModelError(
            f"{where} lies in another file; expected a model that holds its weights, read it with read_model"
        )
    array = numpy_helper.to_array(proto)
    if dtype == torch.float32:
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, copy=True)).to(dtype)
