"""An ONNX graph, as `art_export` writes it, as a Keras model. Needs the environment of `art_peer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

__all__ = ["as_keras"]

Weights = Mapping[str, np.ndarray]
Node = Mapping[str, Any]


def as_keras(graph: Mapping[str, Any], weights: Weights, shape: tuple[int, int, int]) -> keras.Model:
    """Return the model from images, channels last, to logits.

    Args:
        graph: Its nodes in order, the name of its input and of its output.
        weights: By name, as ONNX lays them out.
        shape: Height, width and channels of an image.

    Raises:
        ValueError: If an operator, or a form of one, is not among those known here.
    """
    images = keras.Input(shape)
    tensors = {graph["input"]: images}
    for node in graph["nodes"]:
        if node["op"] not in LAYERS:
            raise ValueError(f"{node['op']}: expected one of {', '.join(sorted(LAYERS))}")
        inputs = [tensors[name] for name in node["inputs"] if name in tensors]
        held = [weights[name] for name in node["inputs"] if name in weights]
        tensors[node["output"]] = LAYERS[node["op"]](inputs, held, node["attributes"])
    return keras.Model(images, tensors[graph["output"]])


def _convolution(inputs: list[Any], held: list[np.ndarray], attributes: Node) -> Any:
    """Pad as ONNX does: Keras' "same" pads a strided convolution on the far side only."""
    kernel = held[0]
    filters, _, *size = kernel.shape
    strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0, 0, 0])
    _expect(attributes, dilations=[1, 1], group=1, auto_pad="NOTSET")
    same = [*strides] == [1, 1] and all(2 * pad == side - 1 for pad, side in zip(pads, size * 2, strict=True))
    features = inputs[0]
    if any(pads) and not same:
        top, left, bottom, right = pads
        features = layers.ZeroPadding2D(((top, bottom), (left, right)))(features)
    biased = len(held) > 1
    padding = "same" if same else "valid"
    layer = layers.Conv2D(filters, size, strides=tuple(strides), padding=padding, use_bias=biased)
    return _with(layer, features, [kernel.transpose(2, 3, 1, 0), *held[1:]])


def _batch_norm(inputs: list[Any], held: list[np.ndarray], attributes: Node) -> Any:
    return _with(layers.BatchNormalization(epsilon=attributes.get("epsilon", 1e-5)), inputs[0], held)


def _add(inputs: list[Any], held: list[np.ndarray], _: Node) -> Any:
    if held:
        raise ValueError("Add: expected two tensors, got a tensor and a constant")
    return layers.Add()(inputs)


def _mean(inputs: list[Any], held: list[np.ndarray], attributes: Node) -> Any:
    """Average over space; a ReduceMean names the axes, as an input or an attribute."""
    axes = attributes.get("axes", held[0].tolist() if held else [2, 3])
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise ValueError(f"ReduceMean: expected the axes of space, 2 and 3, got {axes}")
    return layers.GlobalAveragePooling2D()(inputs[0])


def _flatten(inputs: list[Any], _: list[np.ndarray], __: Node) -> Any:
    """Order the features channels first, as the weights after it expect them."""
    features = inputs[0]
    if len(features.shape) == 4:
        features = layers.Permute((3, 1, 2))(features)
    return layers.Flatten()(features)


def _linear(inputs: list[Any], held: list[np.ndarray], attributes: Node) -> Any:
    _expect(attributes, alpha=1.0, beta=1.0, transA=0)
    kernel = held[0].T if attributes.get("transB", 0) else held[0]
    biased = len(held) > 1
    return _with(layers.Dense(kernel.shape[1], use_bias=biased), inputs[0], [kernel, *held[1:]])


LAYERS = {
    "Add": _add,
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _linear,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "Relu": lambda inputs, _, __: layers.ReLU()(inputs[0]),
    "Reshape": _flatten,
}


def _expect(attributes: Node, **expected: Any) -> None:
    for name, value in expected.items():
        if attributes.get(name, value) != value:
            raise ValueError(f"{name}: expected {value}, got {attributes[name]}")


def _with(layer: Any, features: Any, weights: list[np.ndarray]) -> Any:
    answer = layer(features)
    layer.set_weights(weights)
    return answer
