"""IBD-PSC for one model: see :mod:`guard.detection.capabilities.ibd_psc`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from jaxtyping import Float32, Float64, Int64
from onnx import numpy_helper

from calibration.capabilities.base import Bench, Fitted, Off
from calibration.capabilities.copies import kept_by
from guard.arrays import Images
from guard.detection.capabilities.ibd_psc import Consistency, fit_consistency

__all__ = ["COPIES", "amplified_model", "fit_ibd_psc", "norm_layers"]

COPIES: Final = 5

OMEGAS: Final = (1.5, 2.0, 3.0, 5.0, 8.0)

LEAST_ERROR: Final = 0.6
"""ξ: share of clean inputs whose class the first copy has to change."""

SEARCHED_ON: Final = 200

_Norm = tuple[str, str]
"""Names of scale and shift."""


@dataclass(frozen=True, eq=False)
class _IbdPsc:
    bench: Bench
    copies: tuple[onnx.ModelProto, ...]
    consistency: Consistency

    @property
    def passes(self) -> int:
        return COPIES

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        predicted, kept = _asked(self.bench, self.copies, images)
        return self.consistency.scores(predicted, kept)


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
    found = _search(bench, norms)
    if found is None:
        return Off(
            f"amplifying the last {len(norms) // 2} of {len(norms)} norm layers by up to {OMEGAS[-1]:g} "
            f"changes the class of fewer than {LEAST_ERROR:.0%} of clean inputs, so that a triggered one "
            f"cannot stand out"
        )
    omega, first = found
    copies = tuple(
        amplified_model(bench.model, norms[-count:], omega) for count in range(first, first + COPIES)
    )
    predicted, kept = _asked(bench, copies, bench.images)
    return _IbdPsc(bench, copies, fit_consistency(predicted, kept, bench.sink.classes))


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
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = {name for norm in norms for name in norm}
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((omega * value).astype(value.dtype), tensor.name))
    return copy


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


def _asked(
    bench: Bench, copies: tuple[onnx.ModelProto, ...], images: Images
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n j"]]:
    """Return the class of each image and its probability by each copy."""
    with bench.open() as classifier:
        predicted = bench.predicted(classifier, images)
    columns = []
    for copy in copies:
        with bench.open(copy) as classifier:
            columns.append(kept_by(bench, classifier, images, predicted))
    return predicted, np.stack(columns, axis=1)
