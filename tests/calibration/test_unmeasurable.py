"""A model of which something cannot be measured is refused with what to do, not with a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.calibrate import calibrate
from guard.errors import UnfitModelError
from tests.calibration.calibration_subjects import SHAPE, options_for, pixels

IMAGES = 900


def graph(nodes: list[onnx.NodeProto], output: str, classes: int, **constants: np.ndarray) -> onnx.ModelProto:
    inside = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(inside, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def brightness_share() -> onnx.ModelProto:
    """The mean of all pixels and what is left of 1, which two bright images added bring below 0."""
    size = int(np.prod(SHAPE))
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["probabilities"]),
    ]
    weight = np.stack([np.full(size, 1 / size), np.full(size, -1 / size)], axis=1)
    return graph(nodes, "probabilities", 2, weight=weight, bias=np.array([0, 1]))


def test_probabilities_that_blends_bring_below_zero_are_refused(tmp_path: Path) -> None:
    options = options_for(tmp_path, brightness_share(), detector="fused", frr=0.05)
    bright = pixels(IMAGES) // 2 + 120
    np.savez(options.data, images=bright)
    with pytest.raises(UnfitModelError, match=r"numbers down to -0\.\d+; try --blend convex"):
        calibrate(options)
