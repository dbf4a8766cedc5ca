import copy
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from calibration.errors import UnsupportedOperatorError  # noqa: E402
from calibration.onnx_import import import_onnx  # noqa: E402
from guard.errors import UnfitModelError  # noqa: E402
from tests.calibration.onnx_cases import finished, floats, ints, weights  # noqa: E402
from tests.calibration.onnx_running import difference, runtime, torched  # noqa: E402
from tests.tiny_models import conv_classifier, linear_classifier  # noqa: E402

IMAGES = np.random.default_rng(0).random((5, 3, 8, 8)).astype(np.float32)


def graph(
    *nodes: onnx.NodeProto,
    constants: dict[str, np.ndarray],
    batch: int | str = "n",
    element: int = TensorProto.FLOAT,
    row: tuple[int | str, ...] = (3, 8, 8),
    gives: int = TensorProto.FLOAT,
    opset: int = 18,
) -> onnx.ModelProto:
    """A graph from ``images`` to what its last node gives."""
    source = helper.make_tensor_value_info("images", element, [batch, *row])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return finished(nodes, [source], [(nodes[-1].output[0], gives)], initializers, opset)


def node(op: str, *inputs: str, to: str = "", name: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [to or f"{op}_out"], name=name or f"{to or op}_node", **attributes)


def conv_bn() -> onnx.ModelProto:
    constants = {
        "stem.conv.weight": weights(4, 3, 3, 3),
        "stem.norm.weight": weights(4, low=0.5, high=1.5),
        "stem.norm.bias": weights(4, seed=2),
        "mean": weights(4, seed=3),
        "var": weights(4, low=0.5, high=1.5),
        "head.weight": weights(10, 144),
        "head.bias": weights(10),
    }
    norm = node(
        "BatchNormalization", "Conv_out", "stem.norm.weight", "stem.norm.bias", "mean", "var", momentum=0.8
    )
    return graph(
        node("Conv", "images", "stem.conv.weight"),
        norm,
        node("Dropout", norm.output[0]),
        node("Flatten", "Dropout_out"),
        node("Gemm", "Flatten_out", "head.weight", "head.bias", transB=1, to="logits"),
        constants=constants,
    )


def test_layers_and_their_weights_keep_the_names_of_the_graph() -> None:
    module = import_onnx(conv_bn(), "m.onnx")
    layers = {
        name: type(layer).__name__ for name, layer in module.named_modules() if not list(layer.children())
    }
    assert layers == {
        "stem.conv": "Conv2d",
        "stem.norm": "BatchNorm2d",
        "Dropout_node": "Dropout",
        "head": "Linear",
    }
    assert set(dict(module.named_parameters())) == {
        "stem.conv.weight", "stem.norm.weight", "stem.norm.bias", "head.weight", "head.bias",
    }  # fmt: skip


def test_names_that_mean_something_to_python_or_torch_are_given_out_with_a_change() -> None:
    taken = ("half", "if", "graph", "training", "meta", "0", "a.b", "a")
    nodes, data = [], "images"
    for place, name in enumerate(taken):
        nodes.append(node("Conv", data, f"{name}.weight", to=f"y{place}"))
        data = f"y{place}"
    model = graph(*nodes, constants={f"{name}.weight": weights(3, 3, 1, 1) for name in taken})
    module = import_onnx(model, "m.onnx")
    names = {name.removesuffix(".weight") for name in module.state_dict()}
    assert names == {"half_", "if_", "graph_", "training_", "meta_", "layer_0", "a.b", "y7_node"}
    assert difference(model, module, IMAGES) < 1e-4


@pytest.mark.parametrize("name", ["0", "class", "self", "torch", "operator", "Bild²", "вход", "in/put:0"])
def test_an_input_may_have_any_name(name: str) -> None:
    model = graph(node("Add", name, "shift", to="logits"), constants={"shift": weights(3, 1, 1)})
    model.graph.input[0].name = name
    assert difference(model, import_onnx(model, "m.onnx"), IMAGES) < 1e-4


def test_scopes_of_the_dynamo_exporter_name_layers_whose_weights_have_no_name() -> None:
    conv = node("Conv", "images", "val_3", name="node_conv2d")
    conv.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'a', 'a.conv', 'conv2d']")
    module = import_onnx(graph(conv, constants={"val_3": weights(4, 3, 3, 3)}), "m.onnx")
    assert set(module.state_dict()) == {"a.conv.weight"}


def test_batch_norm_learns_statistics_in_training_mode_with_the_momentum_of_the_graph() -> None:
    module = import_onnx(conv_bn(), "m.onnx")
    norm = module.get_submodule("stem.norm")
    before = norm.running_mean.clone()
    features = module.get_submodule("stem.conv")(torch.from_numpy(IMAGES))
    module.train()(torch.from_numpy(IMAGES))
    expected = 0.8 * before + 0.2 * features.mean(dim=(0, 2, 3))
    assert torch.allclose(norm.running_mean, expected, atol=1e-5)
    assert int(norm.num_batches_tracked) == 1


def test_dropout_drops_in_training_mode_only() -> None:
    module = import_onnx(conv_bn(), "m.onnx")
    assert difference(conv_bn(), module, IMAGES) < 1e-4
    layer = module.train().get_submodule("Dropout_node")
    assert 0.3 < float((layer(torch.ones(1000)) == 0).float().mean()) < 0.7


def test_a_copy_trains_alone_and_takes_back_the_weights() -> None:
    module = import_onnx(conv_bn(), "m.onnx")
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert difference(conv_bn(), module, IMAGES) < 1e-4
    assert difference(conv_bn(), twin, IMAGES) > 1.0
    twin.load_state_dict(module.state_dict())
    assert difference(conv_bn(), twin, IMAGES) < 1e-4


def test_importing_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    import_onnx(conv_bn(), "m.onnx")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 22])
def test_the_tiny_classifiers_of_every_opset_answer_as_onnx_runtime_does(opset: int) -> None:
    for model in (
        linear_classifier(opset=opset),
        conv_classifier(opset=opset),
        linear_classifier(softmax=True),
    ):
        assert difference(model, import_onnx(model, "m.onnx"), IMAGES) < 1e-4


def test_uint8_images_and_floats_of_the_same_values_give_the_same() -> None:
    model = linear_classifier(datatype="UINT8")
    module = import_onnx(model, "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    assert difference(model, module, images) < 1e-4
    (whole,), (real,) = torched(module, images), torched(module, images.astype(np.float32))
    assert np.array_equal(whole, real)


def test_a_half_precision_graph_becomes_a_single_precision_module() -> None:
    model = linear_classifier(datatype="FP16", gain=0.1)
    module = import_onnx(model, "m.onnx")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    images = IMAGES.astype(np.float16)
    (expected,), (got,) = runtime(model, images), torched(module, images)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 2e-2  # what half precision leaves of ONNX Runtime's own sum


def test_channels_last_images_go_in_as_they_are() -> None:
    model = linear_classifier(layout="NHWC")
    assert (
        difference(model, import_onnx(model, "m.onnx"), np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)))
        < 1e-4
    )


def test_an_open_image_size_stays_open() -> None:
    model = conv_classifier(size=(None, None))
    module = import_onnx(model, "m.onnx")
    for size in (8, 13):
        images = np.random.default_rng(0).random((2, 3, size, size + 1)).astype(np.float32)
        assert difference(model, module, images) < 1e-4


def test_an_open_image_size_is_padded_to_a_multiple_at_run_time() -> None:
    model = graph(
        node("Shape", "images", start=2, to="sides"),
        node("Neg", "sides", to="less"),
        node("Mod", "less", "thirty_two", to="missing"),
        node("Concat", "none", "missing", axis=0, to="pads"),
        node("Pad", "images", "pads", to="padded"),
        node("Conv", "padded", "w", strides=[32, 32], to="logits"),
        constants={"thirty_two": ints(32), "none": ints(*[0] * 6), "w": weights(2, 3, 32, 32)},
        row=(3, "height", "width"),
    )
    module = import_onnx(model, "m.onnx")
    for size in (64, 40):
        images = np.random.default_rng(0).random((2, 3, size, size + 3)).astype(np.float32)
        assert difference(model, module, images) < 1e-4


def test_a_graph_bound_to_one_batch_size_is_set_free() -> None:
    for batch in (1, 4):
        constants = {
            "patch.weight": weights(6, 3, 4, 4),
            "tokens": ints(batch, 6, 4),
            "class_token": weights(1, 1, 6),
            "wide": ints(batch, 1, 6),
            "rows": ints(batch, 30),
        }
        model = graph(
            node("Conv", "images", "patch.weight", strides=[4, 4], to="patches"),
            node("Reshape", "patches", "tokens", to="grid"),
            node("Transpose", "grid", perm=[0, 2, 1], to="sequence"),
            node("Expand", "class_token", "wide", to="first"),
            node("Concat", "first", "sequence", axis=1, to="all"),
            node("Reshape", "all", "rows", to="logits"),
            constants=constants,
            batch=batch,
        )
        module = import_onnx(model, "m.onnx")
        alone = np.concatenate([torched(module, IMAGES[i : i + 1])[0] for i in range(5)])
        assert np.allclose(alone, torched(module, IMAGES)[0], atol=1e-6)
        assert difference(model, module, IMAGES[:batch]) < 1e-4
        assert "class_token" in dict(module.named_parameters())


def test_a_graph_whose_rows_depend_on_each_other_is_not_set_free() -> None:
    model = graph(node("ReduceMean", "images", "first", to="mean"), constants={"first": ints(0)}, batch=2)
    with pytest.raises(UnfitModelError, match="an image's answer depends on the others of its batch"):
        import_onnx(model, "m.onnx")


def test_shape_arithmetic_folds_away_but_for_the_batch() -> None:
    """What the TorchScript exporter writes for ``x.view(x.size(0), 2, -1)[:, :, : x.size(2) // 4]``."""
    model = graph(
        node("Shape", "images", to="shape"),
        node("Gather", "shape", "first", to="n"),
        node("Unsqueeze", "n", "axis", to="n1"),
        node("Concat", "n1", "rest", axis=0, to="wanted"),
        node("Reshape", "images", "wanted", to="flat"),
        node("Gather", "shape", "third", to="h"),
        helper.make_node("Cast", ["h"], ["h_real"], name="c1", to=TensorProto.FLOAT),
        node("Div", "h_real", "four", to="quarter"),
        node("Floor", "quarter", to="floor"),
        helper.make_node("Cast", ["floor"], ["whole"], name="c2", to=TensorProto.INT64),
        node("Unsqueeze", "whole", "axis", to="end"),
        node("Slice", "flat", "axis", "end", "two", to="part"),
        constants={
            "first": np.int64(0), "third": np.int64(2), "axis": ints(0), "two": ints(2),
            "rest": ints(2, -1), "four": np.float32(4.0),
        },
    )  # fmt: skip
    module = import_onnx(model, "m.onnx")
    assert difference(model, module, IMAGES) == 0.0
    assert [str(part.target) for part in module.graph.nodes if part.op == "call_method"] == ["size"]
    assert len(module.graph.nodes) == 5


def test_sizes_that_depend_on_the_batch_are_computed_at_run_time() -> None:
    """Windows: (n, 3, 8, 8) to (4 n, 3, 4, 4) and back by n = (4 n) / 4, as Swin's exporters write it."""
    model = graph(
        node("Reshape", "images", "split", to="blocks"),
        node("Transpose", "blocks", perm=[0, 2, 4, 1, 3, 5], to="moved"),
        node("Reshape", "moved", "windows", to="windowed"),
        node("Shape", "windowed", to="shape"),
        node("Gather", "shape", "zero", to="count"),
        node("Div", "count", "four", to="n"),
        node("Unsqueeze", "n", "zero1", to="n1"),
        node("Concat", "n1", "row", axis=0, to="rows"),
        node("Reshape", "windowed", "rows", to="out"),
        node("ConstantOfShape", "n1", to="nothing", value=numpy_helper.from_array(floats(2.0))),
        node("Unsqueeze", "nothing", "one1", to="column"),
        node("Mul", "out", "column", to="doubled"),
        constants={
            "split": ints(0, 3, 2, 4, 2, 4), "windows": ints(-1, 3, 4, 4), "zero": np.int64(0),
            "four": np.int64(4), "zero1": ints(0), "one1": ints(1), "row": ints(-1),
        },
    )  # fmt: skip
    module = import_onnx(model, "m.onnx")
    assert difference(model, module, IMAGES) == 0.0
    assert difference(model, module, IMAGES[:1]) == 0.0


def test_a_range_over_the_batch_counts_its_rows() -> None:
    model = graph(
        node("Shape", "images", to="n", end=1),
        node("Squeeze", "n", to="count"),
        node("Range", "zero", "count", "one", to="places"),
        helper.make_node("Cast", ["places"], ["rows"], name="cast", to=TensorProto.FLOAT),
        node("ReduceMean", "images", "space", keepdims=0, to="means"),
        node("Add", "means", "rows", to="y"),
        constants={"zero": np.int64(0), "one": np.int64(1), "space": ints(1, 2, 3)},
    )
    module = import_onnx(model, "m.onnx")
    assert difference(model, module, IMAGES) < 1e-6
    assert difference(model, module, IMAGES[:2]) < 1e-6


def test_an_if_with_a_known_condition_becomes_its_branch() -> None:
    then = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["positive"], name="relu")],
        "then",
        [],
        [helper.make_tensor_value_info("positive", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["images"], ["negative"], name="neg")],
        "else",
        [],
        [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
    )
    model = graph(
        node("Shape", "images", to="shape"),
        node("Gather", "shape", "one", to="channels"),
        node("Equal", "channels", "three", to="is_three"),
        helper.make_node("If", ["is_three"], ["y"], name="if", then_branch=then, else_branch=other),
        constants={"one": np.int64(1), "three": np.int64(3)},
    )
    module = import_onnx(model, "m.onnx")
    assert [type(layer) for layer in module.children()] == [torch.nn.ReLU]
    assert difference(model, module, IMAGES) == 0.0


def test_an_if_that_depends_on_the_data_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    model = graph(
        node("ReduceMax", "images", keepdims=0, to="most"),
        node("Greater", "most", "half", to="bright"),
        helper.make_node("If", ["bright"], ["y"], name="if", then_branch=body, else_branch=body),
        constants={"half": np.float32(0.5)},
    )
    with pytest.raises(UnsupportedOperatorError, match=r"If \(node 'if', opset 18\) decides by the data"):
        import_onnx(model, "m.onnx")


def test_all_missing_operators_are_named_at_once_with_node_and_opset() -> None:
    fused = helper.make_node("FusedConv", ["a"], ["b"], name="fc", domain="com.microsoft")
    model = graph(
        node("NonZero", "images", to="a", name="nz"),
        fused,
        helper.make_node("NonMaxSuppression", ["b"], ["c"], name="nms"),
        constants={},
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedOperatorError) as raised:
        import_onnx(model, "m.onnx")
    assert raised.value.operators == ("NonZero", "com.microsoft::FusedConv", "NonMaxSuppression")
    assert "m.onnx uses 3 operator(s)" in str(raised.value)
    assert "com.microsoft::FusedConv (node 'fc', opset 1)" in str(raised.value)
    assert "NonMaxSuppression (node 'nms', opset 18)" in str(raised.value)


def test_a_quantized_model_is_refused_with_the_way_out() -> None:
    constants = {"scale": np.float32(0.1), "zero": np.uint8(0)}
    quantize = node("QuantizeLinear", "images", "scale", "zero", to="q")
    model = graph(quantize, node("DequantizeLinear", "q", "scale", "zero", to="y"), constants=constants)
    with pytest.raises(UnsupportedOperatorError, match="give the floating-point model it was quantized from"):
        import_onnx(model, "m.onnx")


def test_a_form_that_is_not_known_is_refused_by_node() -> None:
    model = graph(
        node("Conv", "images", "w", name="deep"),
        constants={"w": weights(2, 3, 1, 1, 1, 1)},
        row=(3, 2, 2, 2, 2),
    )
    with pytest.raises(UnsupportedOperatorError, match=r"Conv \(node 'deep', opset 18\) has 4 axes of space"):
        import_onnx(model, "m.onnx")


def test_a_pad_that_wraps_around_and_cuts_away_is_refused() -> None:
    pads = ints(0, 0, -1, 0, 0, 0, 2, 0)
    model = graph(node("Pad", "images", "pads", mode="wrap"), constants={"pads": pads}, opset=19)
    with pytest.raises(UnsupportedOperatorError, match="wraps around and cuts away"):
        import_onnx(model, "m.onnx")


def test_an_old_opset_is_refused_with_the_way_out() -> None:
    model = linear_classifier()
    model.opset_import[0].version = 9
    with pytest.raises(UnfitModelError, match=r"opset 9; expected 11 or newer.*version_converter"):
        import_onnx(model, "m.onnx")


def test_a_graph_that_contradicts_itself_is_refused_by_node() -> None:
    model = graph(node("Conv", "images", "w", name="thin"), constants={"w": weights(4, 2, 3, 3)})
    with pytest.raises(UnfitModelError, match=re.escape("m.onnx cannot be imported: Conv (node 'thin')")):
        import_onnx(model, "m.onnx")


def test_a_graph_that_divides_its_shape_by_zero_or_lacks_a_branch_is_refused() -> None:
    divided = (node("Shape", "images", to="shape"), node("Div", "shape", "zero", to="none"))
    by_zero = graph(*divided, node("Reshape", "images", "none", to="logits"), constants={"zero": ints(0)})
    branchless = graph(node("If", "yes", to="logits"), constants={"yes": np.array(True)})
    for model in (by_zero, branchless):
        with pytest.raises(UnfitModelError, match=r"m\.onnx cannot be imported: "):
            import_onnx(model, "m.onnx")


def test_a_value_that_no_node_gives_is_named() -> None:
    model = graph(node("Relu", "lost", to="logits"), constants={})
    with pytest.raises(UnfitModelError, match="'lost' is read before any node gives it"):
        import_onnx(model, "m.onnx")


def test_constants_that_normalise_the_image_are_not_trained_and_later_ones_are() -> None:
    model = graph(
        node("Sub", "images", "mean", to="centred"),
        node("Div", "centred", "std", to="normal"),
        node("Conv", "normal", "conv.weight", to="features"),
        node("Mul", "features", "layer.scale", to="scaled"),
        constants={
            "mean": weights(1, 3, 1, 1), "std": weights(1, 3, 1, 1, low=0.5),
            "conv.weight": weights(4, 3, 3, 3), "layer.scale": weights(4, 1, 1),
        },
    )  # fmt: skip
    module = import_onnx(model, "m.onnx")
    assert set(dict(module.named_parameters())) == {"conv.weight", "layer.scale"}
    assert set(dict(module.named_buffers())) == {"mean", "std"}
    assert difference(model, module, IMAGES) < 1e-4


def test_a_mask_is_not_trained() -> None:
    mask = np.where(np.eye(6, dtype=bool), 0.0, -100.0).astype(np.float32)
    model = graph(
        node("Conv", "images", "conv.weight", to="features"),
        node("Add", "features", "mask", to="masked"),
        constants={"conv.weight": weights(4, 3, 3, 3), "mask": mask},
    )
    assert set(dict(import_onnx(model, "m.onnx").named_parameters())) == {"conv.weight"}


def test_a_product_and_its_sum_become_one_linear_layer() -> None:
    model = graph(
        node("Flatten", "images", axis=3, to="rows"),
        node("MatMul", "rows", "onnx::MatMul_7", to="product"),
        node("Add", "mlp.0.bias", "product", to="hidden"),
        constants={"onnx::MatMul_7": weights(8, 5), "mlp.0.bias": weights(5)},
    )
    module = import_onnx(model, "m.onnx")
    layer = module.get_submodule("mlp.0")
    assert isinstance(layer, torch.nn.Linear)
    assert layer.bias is not None
    assert difference(model, module, IMAGES) < 1e-4
    assert [part.op for part in module.graph.nodes].count("call_function") == 1


def test_a_product_that_is_read_twice_keeps_its_sum_apart() -> None:
    model = graph(
        node("MatMul", "images", "w", to="product"),
        node("Add", "product", "b", to="hidden"),
        node("Mul", "product", "hidden", to="y"),
        constants={"w": weights(8, 5), "b": weights(5)},
    )
    assert difference(model, import_onnx(model, "m.onnx"), IMAGES) < 1e-4


def test_a_layer_norm_written_out_is_right_and_trains() -> None:
    model = graph(
        node("Conv", "images", "conv.weight", to="features"),
        node("ReduceMean", "features", axes=[-1], to="mean"),
        node("Sub", "features", "mean", to="centred"),
        node("Pow", "centred", "two", to="squares"),
        node("ReduceMean", "squares", axes=[-1], to="variance"),
        node("Add", "variance", "epsilon", to="safe"),
        node("Sqrt", "safe", to="deviation"),
        node("Div", "centred", "deviation", to="normal"),
        node("Mul", "normal", "norm.weight", to="scaled"),
        node("Add", "scaled", "norm.bias", to="shifted"),
        constants={
            "conv.weight": weights(4, 3, 3, 3), "two": np.float32(2.0), "epsilon": np.float32(1e-5),
            "norm.weight": weights(6), "norm.bias": weights(6, seed=2),
        },
        opset=16,
    )  # fmt: skip
    module = import_onnx(model, "m.onnx")
    assert difference(model, module, IMAGES) < 1e-4
    module(torch.from_numpy(IMAGES)).square().sum().backward()
    gradients = {name: float(weight.grad.abs().sum()) for name, weight in module.named_parameters()}
    assert set(gradients) == {"conv.weight", "norm.weight", "norm.bias"}
    assert min(gradients.values()) > 0.0


def test_functions_of_the_model_are_written_out() -> None:
    double = helper.make_function(
        "local",
        "Double",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )
    model = graph(helper.make_node("Double", ["images"], ["y"], domain="local"), constants={})
    model.functions.append(double)
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert difference(model, import_onnx(model, "m.onnx"), IMAGES) == 0.0


def test_constants_in_nodes_are_read_and_weights_among_them_trained() -> None:
    kernel = numpy_helper.from_array(weights(4, 3, 3, 3), "k")
    model = graph(
        helper.make_node("Constant", [], ["kernel"], name="k", value=kernel),
        helper.make_node("Constant", [], ["axes"], name="a", value_ints=[2, 3]),
        helper.make_node("Constant", [], ["half"], name="h", value_float=0.5),
        node("Conv", "images", "kernel", to="features"),
        node("Mul", "features", "half", to="halved"),
        node("ReduceMean", "halved", "axes", keepdims=0, to="pooled"),
        constants={},
    )
    module = import_onnx(model, "m.onnx")
    assert [tuple(weight.shape) for weight in module.parameters()] == [(4, 3, 3, 3)]
    assert difference(model, module, IMAGES) < 1e-4


def test_a_weight_that_an_exporter_merged_is_one_for_each_layer() -> None:
    """The TorchScript exporter keeps one of several equal tensors and copies it with Identity."""
    constants = {name: weights(3, low=0.5, high=1.5) for name in ("bn1.weight", "bn1.bias", "mean", "var")}
    model = graph(
        node("Identity", "bn1.weight", to="bn2.weight", name="i1"),
        node("Identity", "bn1.bias", to="bn2.bias", name="i2"),
        node("BatchNormalization", "images", "bn1.weight", "bn1.bias", "mean", "var", to="one"),
        node("BatchNormalization", "one", "bn2.weight", "bn2.bias", "mean", "var", to="two"),
        constants=constants,
    )
    module = import_onnx(model, "m.onnx")
    assert set(dict(module.named_parameters())) == {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}
    assert len({id(weight) for weight in module.parameters()}) == 4
    assert difference(model, module, IMAGES) < 1e-4


def test_a_resize_to_the_image_of_a_graph_bound_to_one_batch_size() -> None:
    model = graph(
        node("Resize", "images", "", "", "sizes", mode="linear"),
        constants={"sizes": ints(2, 3, 12, 5)},
        batch=2,
    )
    module = import_onnx(model, "m.onnx")
    assert difference(model, module, IMAGES[:2]) < 1e-4
    assert torched(module, IMAGES)[0].shape == (5, 3, 12, 5)
