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
from jaxtyping import Float, Float32, Int64, Num

__all__ = [
    "DATATYPES",
    "EntropyBits",
    "Images",
    "Logits",
    "Overlays",
    "PairIndex",
    "Probabilities",
    "datatype_of",
]

Images = Num[np.ndarray, "n *row"]
Overlays = Num[np.ndarray, "m *row"]
Logits = Float32[np.ndarray, "p k"]
Probabilities = Float[np.ndarray, "*batch k"]
EntropyBits = Float[np.ndarray, " p"]
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


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """Return the V2 name of a numpy dtype, such as ``"FP32"`` for float32.

    Raises:
        ValueError: If the V2 protocol has no name for it.
    """
    for name, candidate in DATATYPES.items():
        if candidate == dtype:
            return name
    raise ValueError(f"dtype {dtype} has no V2 datatype; expected one of {', '.join(DATATYPES)}")
