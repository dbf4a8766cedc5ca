"""Copies of a model joined into one graph say what the copies say one by one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.capabilities.ibd_psc import amplified_model, fit_ibd_psc, norm_layers
from calibration.capabilities.joined import joined, why_not_joined
from tests.calibration.capability_models import SINK, bench_of, clean_images, residual_net

OMEGA = 1.5


def weights_of(model: onnx.ModelProto, norms: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    names = {name for norm in norms for name in norm}
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in names}


def test_each_copy_says_what_it_says_alone() -> None:
    model = residual_net(3)
    norms, images = norm_layers(model), clean_images(9)
    counts = (1, 2, 3, 7)
    alone = [amplified_model(model, norms[-count:], OMEGA) for count in counts]
    copies = joined(model, SINK, [weights_of(one, norms[-n:]) for one, n in zip(alone, counts, strict=True)])
    onnx.checker.check_model(copies.model)
    bench = bench_of(model, 1)
    with bench.asked(copies) as asked:
        assert asked.copies is not None
        together = asked.copies(images)
    assert together.shape == (9, 4, SINK.classes)
    for place, one in enumerate(alone):
        with bench.with_model(one).asked() as asked:
            np.testing.assert_allclose(together[:, place], asked.model(images), atol=1e-5)
    assert np.ptp(together, axis=1).max() > 0.05


def test_what_the_copies_share_is_there_once() -> None:
    model = residual_net(3)
    last = norm_layers(model)[-1:]
    copies = joined(model, SINK, [weights_of(model, last)] * 5)
    ops = [node.op_type for node in copies.model.graph.node]
    assert ops.count("Conv") == 12 + 5  # of the model all but the last one, and that of each copy
    assert copies.model.ByteSize() < 2 * model.ByteSize()


def test_weights_that_are_listed_as_inputs_too_are_shared_like_others() -> None:
    old = residual_net(3)
    for one in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, one.dims))
    last = weights_of(old, norm_layers(old)[-1:])
    bench = bench_of(old, 1)
    with bench.asked(joined(old, SINK, [last] * 2)) as asked:
        assert asked.copies is not None
        images = clean_images(3)
        for copy in np.moveaxis(asked.copies(images), 1, 0):
            np.testing.assert_allclose(copy, asked.model(images), atol=1e-6)


def test_graphs_inside_operators_cannot_be_joined() -> None:
    model = residual_net(3)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["kept"])],
        "inner",
        [],
        [helper.make_tensor_value_info("kept", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    node = helper.make_node("If", ["always"], ["out"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    assert why_not_joined(residual_net(3)) == ""
    assert why_not_joined(model) == "the model has operators with graphs of their own inside (If)"
    found = fit_ibd_psc(bench_of(model, 120))
    assert getattr(found, "reason", "") == why_not_joined(model)
