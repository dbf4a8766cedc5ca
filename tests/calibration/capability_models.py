"""A small convolutional classifier that works, made without training, and nets that allow less."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from calibration.capabilities.base import Bench
from guard.artifact import InputSpec, OutputSpec

CLASSES, SIZE, WIDTH, BLOCKS = 4, 8, 12, 6

SOURCE = InputSpec(
    name="images", datatype="FP32", shape=(3, SIZE, SIZE), layout="NCHW", low=(0.0,), high=(1.0,)
)
SINK = OutputSpec(name="logits", datatype="FP32", classes=CLASSES, kind="logits")


def clean_images(count: int, seed: int = 1) -> np.ndarray:
    """Return images of one coarse pattern a class, each with a brightness, a shade and noise of its own."""
    patterns = np.random.default_rng(99).uniform(0.1, 0.9, (CLASSES, 3, SIZE // 2, SIZE // 2))
    random = np.random.default_rng(seed)
    shown = patterns[random.integers(0, CLASSES, count)].repeat(2, axis=2).repeat(2, axis=3)
    light = random.uniform(0.35, 1.0, (count, 1, 1, 1))
    noisy = light * shown + random.normal(0, 0.08, shown.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


def residual_net(seed: int = 0, quiet: bool = False) -> onnx.ModelProto:
    """Conv, six residual blocks of two convolutions, pooled; the last layer tells the patterns apart.

    That layer is made in closed form, by least squares on 800 images. The blocks of a ``quiet`` net add next
    to nothing, however much they are amplified.
    """
    random = np.random.default_rng(seed)
    constants = {"stem": random.normal(0, 0.4, (WIDTH, 3, 3, 3)), "stem_bias": random.normal(0, 0.1, WIDTH)}
    nodes = [_conv("images", "stem", "stem_bias", "h"), helper.make_node("Relu", ["h"], ["h0"])]
    for block in range(BLOCKS):
        first, second, into = f"a{block}", f"b{block}", f"h{block}"
        for name in (first, second):
            loudness = 1e-4 if quiet else 1.0
            constants[name] = random.normal(0, 0.15 * loudness, (WIDTH, WIDTH, 3, 3))
            constants[f"{name}_bias"] = random.normal(0, 0.25 * loudness, WIDTH)
        nodes += [
            _conv(into, first, f"{first}_bias", f"{first}_out"),
            helper.make_node("Relu", [f"{first}_out"], [f"{first}_relu"]),
            _conv(f"{first}_relu", second, f"{second}_bias", f"{second}_out"),
            helper.make_node("Add", [into, f"{second}_out"], [f"{second}_sum"]),
            helper.make_node("Relu", [f"{second}_sum"], [f"h{block + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"h{BLOCKS}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
    ]
    features = _model(nodes, constants, "flat", WIDTH)
    constants |= _nearest_pattern(features)
    nodes.append(helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]))
    return _model(nodes, constants, "logits", CLASSES)


def linear_net() -> onnx.ModelProto:
    """No layer between the image and the classes."""
    random = np.random.default_rng(0)
    constants = {"weight": random.normal(0, 1, (3 * SIZE**2, CLASSES)), "bias": np.zeros(CLASSES)}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    return _model(nodes, constants, "logits", CLASSES)


def saturated_net() -> onnx.ModelProto:
    """A linear net that is certain of one class, whatever it is shown."""
    model = linear_net()
    weight = np.zeros((3 * SIZE**2, CLASSES), np.float32)
    weight[:, 0] = 1e-3
    _set(model, "weight", weight)
    _set(model, "bias", np.array([30, 0, 0, 0], np.float32))
    return model


def numb_net() -> onnx.ModelProto:
    """The residual net with no features of its input inside: its classes come by a way around them."""
    model = residual_net()
    for tensor in model.graph.initializer:
        if tensor.name == "stem":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), "stem"))
    random = np.random.default_rng(0)
    around = random.normal(0, 3, (3 * SIZE**2, CLASSES)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(around - around.mean(axis=0), "around"))
    model.graph.node[-1].output[0] = "inside"
    model.graph.node.extend(
        [
            helper.make_node("Flatten", ["images"], ["pixels"], axis=1),
            helper.make_node("MatMul", ["pixels", "around"], ["outside"]),
            helper.make_node("Add", ["inside", "outside"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    return model


def bench_of(model: onnx.ModelProto, count: int = 400) -> Bench:
    return Bench(model, SOURCE, SINK, None, clean_images(count), device="cpu", threads=1)


def _nearest_pattern(features: onnx.ModelProto) -> dict[str, np.ndarray]:
    images = clean_images(800, seed=7)
    patterns = np.random.default_rng(99).uniform(0.1, 0.9, (CLASSES, 3, SIZE // 2, SIZE // 2))
    full = patterns.repeat(2, axis=2).repeat(2, axis=3).reshape(CLASSES, -1)
    flat = images.reshape(len(images), -1)
    likeness = (flat / np.linalg.norm(flat, axis=1, keepdims=True)) @ (
        full / np.linalg.norm(full, axis=1, keepdims=True)
    ).T
    shown = likeness.argmax(axis=1)
    session = ort.InferenceSession(features.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = session.run(None, {"images": images})[0].astype(np.float64)
    targets = np.eye(CLASSES)[shown] - 1 / CLASSES
    design = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
    solved = np.linalg.lstsq(design, targets, rcond=None)[0] * 12
    return {"weight": solved[:-1], "bias": solved[-1]}


def _conv(source: str, weight: str, bias: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight, bias], [output], pads=[1, 1, 1, 1])


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], output: str, width: int
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _set(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
