"""IBD-PSC for one model: see :mod:`guard.detection.capabilities.ibd_psc`."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.capabilities.base import Bench, Fitted, FittedOpinion, Off
from calibration.capabilities.joined import joined, why_not_joined
from guard.detection.base import predicted_classes
from guard.detection.capabilities.ibd_psc import COPIES, IbdPsc, fit_consistency, kept_by_copies

__all__ = ["COPIES", "amplified_model", "fit_ibd_psc", "norm_layers"]

OMEGAS: Final = (1.5, 2.0, 3.0, 5.0, 8.0)

LEAST_ERROR: Final = 0.6
"""ξ: share of clean inputs whose class the first copy has to change."""

SEARCHED_ON: Final = 200

_Norm = tuple[str, str]
"""Names of scale and shift."""


def fit_ibd_psc(bench: Bench) -> Fitted | Off:
    """Return IBD-PSC for the bench's model, or why it cannot be had there.

    ω is the smallest for which amplifying at most the last half of the norm layers changes the class of ξ of
    the clean inputs: the copies then differ from the model late, where triggers act, and as little as needed.
    """
    norms = norm_layers(bench.model)
    if len(norms) < 2 * COPIES:
        return Off(
            f"the model has {len(norms)} norm layers, kept or folded into convolutions, expected at least "
            f"{2 * COPIES}"
        )
    nested = why_not_joined(bench.model)
    if nested:
        return Off(nested)
    found = _search(bench, norms)
    if found is None:
        return Off(
            f"amplifying the last {len(norms) // 2} of {len(norms)} norm layers by up to {OMEGAS[-1]:g} "
            f"changes the class of fewer than {LEAST_ERROR:.0%} of clean inputs, so that a triggered one "
            f"cannot stand out"
        )
    omega, first = found
    copies = joined(
        bench.model,
        bench.sink,
        [_amplified(bench.model, norms[-count:], omega) for count in range(first, first + COPIES)],
    )
    with bench.asked(copies) as asked:
        predicted = predicted_classes(asked.model(bench.images))
        kept = kept_by_copies(bench.images, predicted, asked)
    return FittedOpinion(bench, IbdPsc(fit_consistency(predicted, kept, bench.sink.classes)), copies)


def norm_layers(model: onnx.ModelProto) -> list[_Norm]:
    """Return scale and shift of each norm layer, in order.

    A batch norm that was folded into a convolution is that convolution's weight and bias: multiplying both by
    ω does what multiplying the norm's own does.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: dict[_Norm, None] = {}
    for node in model.graph.node:
        place = {"BatchNormalization": 1, "InstanceNormalization": 1, "LayerNormalization": 1, "Conv": 1}
        if node.op_type in place and len(node.input) >= 3 and {node.input[1], node.input[2]} <= constants:
            found[node.input[1], node.input[2]] = None
    return list(found)


def amplified_model(model: onnx.ModelProto, norms: list[_Norm], omega: float) -> onnx.ModelProto:
    """Return a copy whose norm layers have ω times the scale and shift."""
    weights = _amplified(model, norms, omega)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return copy


def _amplified(model: onnx.ModelProto, norms: list[_Norm], omega: float) -> dict[str, np.ndarray]:
    """Return scale and shift of these norm layers, ω times as large, by name."""
    names = {name for norm in norms for name in norm}
    own = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in names}
    return {name: (omega * value).astype(value.dtype) for name, value in own.items()}


def _search(bench: Bench, norms: list[_Norm]) -> tuple[float, int] | None:
    """Return ω and how many of the last norm layers the first copy amplifies; None if none will do."""
    images = bench.images[:SEARCHED_ON]
    with bench.open() as classifier:
        predicted = bench.predicted(classifier, images)
    for omega in OMEGAS:
        for count in range(1, len(norms) // 2 + 1):
            with bench.open(amplified_model(bench.model, norms[-count:], omega)) as classifier:
                error = float((bench.predicted(classifier, images) != predicted).mean())
            if error > LEAST_ERROR:
                return omega, count
    return None
