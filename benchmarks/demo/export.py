"""From the trained network to one small ONNX file, and the proof that both agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float32
from torch import nn

__all__ = ["export_onnx", "parity"]

LARGEST_DIFFERENCE = 1e-4
LARGEST_BYTES = 1_000_000


def export_onnx(model: nn.Module, path: Path) -> None:
    """Write the model as one ONNX file with a free batch axis, input ``images``, output ``logits``.

    Raises:
        ValueError: If the file is larger than a megabyte.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = model.eval().to(memory_format=torch.contiguous_format)
    torch.onnx.export(
        plain,
        (torch.zeros(2, 3, 32, 32),),
        path,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        external_data=False,
    )
    onnx.save(_without_traces(onnx.load(path)), path)
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path}: expected at most {LARGEST_BYTES} bytes, got {path.stat().st_size}")


def parity(model: nn.Module, path: Path, images: Float32[np.ndarray, "n c h w"]) -> float:
    """Return the largest difference between the logits of the file and of the model, over batches of 1, 5, n.

    Raises:
        ValueError: If it is more than 1e-4.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    largest = 0.0
    for size in (1, 5, len(images)):
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        logits = np.concatenate([session.run(["logits"], {"images": batch})[0] for batch in batches])
        largest = max(largest, float(np.abs(logits - expected).max()))
    if largest > LARGEST_DIFFERENCE:
        raise ValueError(f"{path}: expected logits within {LARGEST_DIFFERENCE} of the model's, got {largest}")
    return largest


def _without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes: they hold stack traces with the paths of the machine that ran it."""
    graph = proto.graph
    parts = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (proto, graph, *parts):
        part.doc_string = ""
        del part.metadata_props[:]
    return proto
