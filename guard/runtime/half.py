"""A model that computes in half precision, its input and output as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import onnx

from guard.errors import UnfitModelError

__all__ = ["in_half_precision"]

_KEPT: Final = ("Softmax", "LogSoftmax")
"""Besides what the converter keeps: a sum over many classes loses most in 11 bits."""


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float16 weights and operators; ``model`` itself is left as it was.

    Its float32 input and output stay float32, so that blends are made, and entropies taken, in float32. What
    a model has in float16 or bfloat16 by itself stays so. The converter is ONNX Runtime's own.

    Raises:
        UnfitModelError: If the converter fails on it.
    """
    with _import_path_as_it_was():  # the package puts its folder on the path when it is imported
        from onnxruntime.transformers import float16  # noqa: PLC0415 - takes half a second, rarely wanted
    try:
        half: onnx.ModelProto = float16.convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_KEPT]
        )
    except Exception as error:
        raise UnfitModelError(
            f"the model cannot be converted to float16: {error}; serve it with precision 'exact' or 'tf32'"
        ) from error
    return half


@contextmanager
def _import_path_as_it_was() -> Iterator[None]:
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
