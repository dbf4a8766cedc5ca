"""Runs ONNX graphs by ONNX Runtime and imported ones by torch, for tests that compare them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch


def runtime(model: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {source.name: array for source, array in zip(session.get_inputs(), arrays, strict=True)}
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def torched(module: torch.nn.Module, *arrays: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        result = module(*(torch.from_numpy(array) for array in arrays))
    return [part.numpy() for part in (result if isinstance(result, tuple) else (result,))]


def difference(model: onnx.ModelProto, module: torch.nn.Module, *arrays: np.ndarray) -> float:
    """Return the largest difference between the first outputs; shapes and types must be equal."""
    (expected, *_), (got, *_) = runtime(model, *arrays), torched(module, *arrays)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if expected.dtype != np.float32:
        assert got.dtype == expected.dtype
    if expected.size == 0:
        return 0.0
    return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max())
