"""Activations of a model as one more output of its check graph, a row for each pair."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from guard.detection.capabilities.layer_distances import Layer
from guard.errors import UnfitModelError
from guard.runtime.node_list import NodeList

__all__ = ["add_features"]


def add_features(
    g: NodeList, inner: Sequence[onnx.NodeProto], layers: Sequence[Layer], prefix: str, output: str
) -> None:
    """Add the nodes that put the layers' activations in a row, averaged over space, as float32.

    Args:
        g: Takes the nodes.
        inner: The model's own nodes.
        layers: In the order of the row.
        prefix: What names of tensors begin with.
        output: Name of the result, (pairs, sum of widths).

    Raises:
        UnfitModelError: If the model has no such tensor.
    """
    made = {name for node in inner for name in node.output}
    rows = []
    for place, layer in enumerate(layers):
        if layer.name not in made:
            raise UnfitModelError(
                f"the model has no tensor {layer.name!r}, which its layer distances are measured at; "
                f"calibrate this model again"
            )
        own = f"{prefix}layer_{place}"
        value = g.node("Cast", [layer.name], f"{own}_fp32", to=TensorProto.FLOAT)
        if layer.over_space:
            value = g.node("GlobalAveragePool", [value], f"{own}_pooled")
        rows.append(g.node("Flatten", [value], f"{own}_row", axis=1))
    g.node("Concat", rows, output, axis=1)
