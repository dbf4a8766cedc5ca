"""The layer distance in the guarded graph, as :class:`LayerDistances` scores the images themselves."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from onnx import TensorProto

from guard.detection.capabilities.layer_distances import LEAST_DISTANCE, LayerDistances
from guard.export.idioms import add_row_sums
from guard.runtime.node_list import NodeList

__all__ = ["add_layer_distance"]


def add_layer_distance(g: NodeList, layers: LayerDistances, features: str, predicted: str) -> tuple[str, str]:
    """Add the distances, in float64.

    Args:
        g: The graph's nodes.
        layers: What clean inputs look like inside.
        features: Name of the activations of the images themselves, float32 (n, d).
        predicted: Name of the classes that the model gives them, int64 (n).

    Returns:
        Names of the distances, float64 (1, n), and of whether they are finite, bool (n, 1).
    """
    centres = g.constant("layer_centres", layers.centres)
    usual = g.node("Gather", [centres, predicted], g.prefix + "usual_features", axis=0)
    wide = [g.node("Cast", [name], name + "_fp64", to=TensorProto.DOUBLE) for name in (features, usual)]
    away = g.node("Sub", wide, g.prefix + "features_away")
    total = ""
    starts = accumulate(layers.widths[:-1], initial=0)
    for place, (start, width, matrix) in enumerate(zip(starts, layers.widths, layers.whitening, strict=True)):
        own = f"{g.prefix}layer_{place}"
        columns = g.constant(f"layer_{place}_columns", np.arange(start, start + width))
        part = g.node("Gather", [away, columns], own, axis=1)
        held = g.constant(f"layer_{place}_whitening", matrix)
        whitening = g.node("Cast", [held], own + "_whitening_fp64", to=TensorProto.DOUBLE)
        white = g.node("MatMul", [part, whitening], own + "_white")
        squares = add_row_sums(g, g.node("Mul", [white, white], own + "_squares"), width, own + "_squared")
        total = g.node("Add", [total, squares], own + "_total") if total else squares
    infinite = g.constant("infinitely_far", np.array(np.inf))
    known = g.node("Less", [total, infinite], g.prefix + "distance_known")
    least = g.constant("least_distance", np.array(LEAST_DISTANCE))
    log = g.node("Log", [g.node("Max", [total, least], g.prefix + "distance_above_0")], g.prefix + "distance")
    row = g.constant("distance_row", np.array([1, -1]))
    return g.node("Reshape", [log, row], g.prefix + "distance_by_row"), known
