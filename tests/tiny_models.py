"""Small ONNX classifiers for tests, each built in milliseconds; every function returns a new ModelProto.

``shape`` is always ``(c, h, w)``, whatever the layout, so the same seed gives the same weights and, up to
rounding, the same answers in every layout, datatype and batch size. The input is called ``images``, the
output ``logits`` or ``probabilities``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "images"

_ELEMENT = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8}
_COMPUTE = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.float32}
_TO_NCHW = [0, 3, 1, 2]


def linear_weights(
    shape: tuple[int, int, int] = (3, 8, 8), classes: int = 10, seed: int = 0, gain: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (pixels, classes) weights and the biases of :func:`linear_classifier`, float32."""
    generator = np.random.default_rng(seed)
    pixels = int(np.prod(shape))
    weight = generator.normal(0.0, gain * 12.0 / np.sqrt(pixels), (pixels, classes))
    bias = generator.normal(0.0, 0.1, classes) - 0.5 * weight.sum(axis=0)
    return weight.astype(np.float32), bias.astype(np.float32)


def linear_classifier(
    shape: tuple[int, int, int] = (3, 8, 8),
    classes: int = 10,
    layout: str = "NCHW",
    datatype: str = "FP32",
    batch: int | None = None,
    softmax: bool = False,
    seed: int = 0,
    opset: int = 17,
    gain: float = 1.0,
) -> onnx.ModelProto:
    """Flatten → Gemm [→ Softmax]; UINT8 models divide by 255 themselves, FP16 ones compute in float16.

    ``gain`` multiplies the weights: near 0 every answer is uncertain, at 100 all are certain.
    """
    compute = _COMPUTE[datatype]
    weight, bias = (part.astype(compute) for part in linear_weights(shape, classes, seed, gain))
    constants = {"weight": weight, "bias": bias}
    nodes, entry = _entry_nodes(layout, datatype, constants)
    last = "probabilities" if softmax else "logits"
    nodes.append(helper.make_node("Flatten", [entry], ["flat"], axis=1))
    nodes.append(helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    inputs = [_image_value(shape, layout, datatype, batch)]
    outputs = [helper.make_tensor_value_info(last, _ELEMENT[_output(datatype)], [batch or "n", classes])]
    return _model(nodes, inputs, outputs, constants, opset)


def bfloat16_classifier(batch: int | None = None, gain: float = 1.0) -> onnx.ModelProto:
    """A linear classifier that takes and gives bfloat16; it computes in float32, as ORT can on CPUs."""
    model = linear_classifier(batch=batch, gain=gain)
    graph = model.graph
    graph.node[0].input[0], graph.node[-1].output[0] = "images_fp32", "logits_fp32"
    into = helper.make_node("Cast", [INPUT], ["images_fp32"], to=TensorProto.FLOAT)
    out_of = helper.make_node("Cast", ["logits_fp32"], ["logits"], to=TensorProto.BFLOAT16)
    nodes = [into, *graph.node, out_of]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.checker.check_model(model)
    return model


def conv_classifier(
    channels: int = 3,
    size: tuple[int | None, int | None] = (8, 8),
    classes: int = 10,
    batch: int | None = None,
    seed: int = 0,
    opset: int = 17,
) -> onnx.ModelProto:
    """Conv → Relu → GlobalAveragePool → Flatten → Gemm, channels first; None leaves a size free."""
    generator = np.random.default_rng(seed)
    constants = {
        "kernel": generator.normal(0.0, 1.0, (16, channels, 3, 3)).astype(np.float32),
        "weight": generator.normal(0.0, 4.0, (16, classes)).astype(np.float32),
        "bias": np.zeros(classes, np.float32),
    }
    nodes = [
        helper.make_node("Conv", [INPUT, "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    height, width = (free or name for free, name in zip(size, ("height", "width"), strict=True))
    axes = [batch or "n", channels, height, width]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, axes)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch or "n", classes])]
    return _model(nodes, inputs, outputs, constants, opset)


def not_a_number_classifier(shape: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> onnx.ModelProto:
    """A linear classifier whose every logit is NaN."""
    model = linear_classifier(shape, classes)
    model.graph.node[-1].output[0] = "finite"
    model.graph.node.append(helper.make_node("Abs", ["finite"], ["positive"]))
    model.graph.node.append(helper.make_node("Neg", ["positive"], ["negative"]))
    model.graph.node.append(helper.make_node("Sqrt", ["negative"], ["logits"]))
    return model


def nan_in_the_dark() -> onnx.ModelProto:
    """A linear classifier that adds 0 · √(mean − 0.1) to every logit: NaN on a dark image, not on a blend."""
    model = linear_classifier()
    model.graph.node[-1].output[0] = "plain"
    for name, value in (("dark", 0.1), ("nothing", 0.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    for node in (
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "dark"], ["light"]),
        helper.make_node("Sqrt", ["light"], ["root"]),
        helper.make_node("Mul", ["root", "nothing"], ["zero"]),
        helper.make_node("Add", ["plain", "zero"], ["logits"]),
    ):
        model.graph.node.append(node)
    return model


def batch_coupled_classifier(shape: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> onnx.ModelProto:
    """A linear classifier that subtracts the mean over the batch: one row changes another's answer."""
    model = linear_classifier(shape, classes)
    model.graph.node[-1].output[0] = "alone"
    model.graph.node.append(helper.make_node("ReduceMean", ["alone"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["alone", "mean"], ["logits"]))
    return model


def two_inputs() -> onnx.ModelProto:
    """Refused: an image and a second tensor come in."""
    model = linear_classifier()
    model.graph.input.append(helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1]))
    model.graph.node[-1].output[0] = "cold"
    model.graph.node.append(helper.make_node("Mul", ["cold", "temperature"], ["logits"]))
    return model


def two_outputs() -> onnx.ModelProto:
    """Refused: logits and features come out."""
    model = linear_classifier()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["n", 192]))
    return model


def image_to_image() -> onnx.ModelProto:
    """Refused: the output is an image, no row of classes."""
    axes = ["n", 3, 8, 8]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, axes)]
    outputs = [helper.make_tensor_value_info("images_out", TensorProto.FLOAT, axes)]
    return _model([helper.make_node("Relu", [INPUT], ["images_out"])], inputs, outputs, {}, 17)


def vector_input() -> onnx.ModelProto:
    """Refused: the input is a batch of vectors."""
    weight, bias = linear_weights((1, 4, 4), 10)
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 16])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])]
    nodes = [helper.make_node("Gemm", [INPUT, "weight", "bias"], ["logits"])]
    return _model(nodes, inputs, outputs, {"weight": weight, "bias": bias}, 17)


def ambiguous_layout() -> onnx.ModelProto:
    """Refused without a layout: 3 × 8 × 3 reads as channels first and as channels last."""
    return linear_classifier(shape=(3, 8, 3))


def untold_classes(shape: tuple[int, int, int] = (3, 8, 8), classes: int = 10) -> onnx.ModelProto:
    """A linear classifier that does not say how many classes it has, not even by shape inference."""
    model = linear_classifier(shape, classes)
    model.graph.node[-1].output[0] = "told"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.0, np.float32), "threshold"))
    for node in (
        helper.make_node("ReduceMax", ["told"], ["highest"], axes=[0, 1], keepdims=0),
        helper.make_node("Greater", ["highest", "threshold"], ["always_or_not"]),
        helper.make_node("Cast", ["always_or_not"], ["one_or_none"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one_or_none", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "axes"], ["shape"]),
        helper.make_node("Reshape", ["told", "shape"], ["logits"]),
    ):
        model.graph.node.append(node)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, classes], np.int64), "axes"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"
    return model


def _entry_nodes(
    layout: str, datatype: str, constants: dict[str, np.ndarray]
) -> tuple[list[onnx.NodeProto], str]:
    nodes, entry = [], INPUT
    if datatype == "UINT8":
        constants["to_unit"] = np.array(1.0 / 255.0, np.float32)
        nodes.append(helper.make_node("Cast", [entry], ["cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["cast", "to_unit"], ["unit"]))
        entry = "unit"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [entry], ["channels_first"], perm=_TO_NCHW))
        entry = "channels_first"
    return nodes, entry


def _image_value(
    shape: tuple[int, int, int], layout: str, datatype: str, batch: int | None
) -> onnx.ValueInfoProto:
    channels, height, width = shape
    row = [channels, height, width] if layout == "NCHW" else [height, width, channels]
    return helper.make_tensor_value_info(INPUT, _ELEMENT[datatype], [batch or "n", *row])


def _output(datatype: str) -> str:
    return "FP16" if datatype == "FP16" else "FP32"


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
    opset: int,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
