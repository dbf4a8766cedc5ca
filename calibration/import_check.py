"""Compares an imported network with the graph it came from, so that none is taken in wrongly."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto
from torch import nn

from calibration.errors import ParityError
from calibration.export import LARGEST_DIFFERENCE, parity
from guard.artifact.signature import Signature
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS

__all__ = ["check_import"]

_HALF_DIFFERENCE: Final = 5e-2
"""ONNX Runtime adds up in half precision what the imported network adds up in single precision."""

_HALVES: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def check_import(module: nn.Module, proto: onnx.ModelProto, signature: Signature, where: str) -> None:
    """Run a graph by ONNX Runtime and by torch on random images, and compare the answers.

    Args:
        module: The imported network.
        proto: The graph it came from.
        signature: Its input and output.
        where: Its name, for errors.

    Raises:
        UnfitModelError: If ONNX Runtime, or torch, cannot run the graph.
        ParityError: If the answers differ, or are no numbers.
    """
    try:
        largest = parity(module, proto, [_random_images(signature)])
    except ORT_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise UnfitModelError(f"ONNX Runtime cannot run {where}: {reason}; export it again") from error
    except (LookupError, MemoryError, RuntimeError, ValueError) as error:
        raise UnfitModelError(f"{where} does not run on random images: {error}; export it again") from error
    tolerance = _HALF_DIFFERENCE if _is_half(proto) else LARGEST_DIFFERENCE
    if not largest <= tolerance:
        raise ParityError(
            f"{where} was not imported faithfully: on random images its logits differ from ONNX Runtime's by "
            f"{largest:.2e} of the largest, expected at most {tolerance:.0e}; export it by another exporter "
            f"or for another opset"
        )


def _random_images(signature: Signature) -> np.ndarray:
    generator = np.random.default_rng(0)
    shape = (signature.fixed_batch or 2, *signature.shape)
    if signature.datatype == "UINT8":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    images = generator.random(shape, dtype=np.float32)
    return images.astype(np.float16) if signature.datatype == "FP16" else images


def _is_half(proto: onnx.ModelProto) -> bool:
    """Whether anything in the graph is computed in half precision."""
    casts = (
        attribute.i for node in proto.graph.node for attribute in node.attribute if attribute.name == "to"
    )
    stored = (tensor.data_type for tensor in proto.graph.initializer)
    faces = (value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output))
    return any(element in _HALVES for elements in (casts, stored, faces) for element in elements)
