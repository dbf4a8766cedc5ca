"""Names for the arrays that travel between rooms, and the V2 datatypes they arrive in.

Shapes are checked while tests run and cost nothing in production (jaxtyping). Letters:
n images, m overlays, p pairs, k classes, c h w channels and size. A ``row`` is one image in
the layout the model takes, ``c h w`` or ``h w c``; rooms that do not care write ``*row``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Int64, Num, UInt16

__all__ = [
    "DATATYPES",
    "HELD",
    "EntropyBits",
    "Features",
    "Images",
    "Logits",
    "Overlays",
    "PairIndex",
    "Probabilities",
    "datatype_of",
    "from_bfloat16",
    "held",
    "to_bfloat16",
]

Images = Num[np.ndarray, "n *row"]
Overlays = Num[np.ndarray, "m *row"]
Logits = Float32[np.ndarray, "p k"]
Probabilities = Float[np.ndarray, "*batch k"]
EntropyBits = Float[np.ndarray, " p"]
Features = Float32[np.ndarray, "p d"]
PairIndex = Int64[np.ndarray, " p"]

DATATYPES: Final[Mapping[str, np.dtype[np.generic]]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
    }
)
"""V2 datatype names and the little-endian numpy dtype of each (BYTES and BF16 have none)."""

HELD: Final[Mapping[str, np.dtype[np.generic]]] = MappingProxyType({**DATATYPES, "BF16": np.dtype("<f4")})
"""The dtype in which tensors of a datatype are held here: BF16 in float32, which holds each of its values."""


def held(values: np.ndarray, datatype: str) -> np.ndarray:
    """Return values in the dtype in which their datatype is held, rounded to what it can say.

    Args:
        values: Of any numeric dtype.
        datatype: V2 name, of :data:`HELD`.

    Examples:
        >>> held(np.array([1.0, 3.14159265]), "BF16").tolist()
        [1.0, 3.140625]
    """
    if datatype == "BF16":
        return from_bfloat16(to_bfloat16(values.astype(np.float32, copy=False)))
    return values.astype(HELD[datatype], copy=False)


def from_bfloat16(bits: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Return the values of bfloat16 numbers, exactly: they are the upper halves of float32 ones."""
    return (bits.astype("<u4") << np.uint32(16)).view("<f4")


def to_bfloat16(values: Float32[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Return the bfloat16 numbers next to float32 values, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """Return the V2 name of a numpy dtype, such as ``"FP32"`` for float32.

    Raises:
        ValueError: If the V2 protocol has no name for it.
    """
    for name, candidate in DATATYPES.items():
        if candidate == dtype:
            return name
    raise ValueError(f"dtype {dtype} has no V2 datatype; expected one of {', '.join(DATATYPES)}")
