r"""The check graph: blend, model and entropy in one ONNX graph.

Theory of operation. The check needs, for one image x, the model's answer to x itself and to x
blended with some of N fixed overlays. Asked naively that is N blends made in Python, copied to
the device, and N rows of scores copied back. Instead the model is wrapped once:

::

    images (n, …)        what the clients sent, rows of any requests
    image_index (p)      ─┐ a ragged list of pairs: which image with which overlay,
    overlay_index (p)    ─┘ -1 for the image itself
        blended_p = w₀ · images[image_index_p] + bank[overlay_index_p + 1]
        logits (p, k) = model(blended)
        entropy_bits (p) = −Σ_j softmax(logits)_j · log₂ softmax(logits)_j
        features (p, d) = some layers' activations, averaged over space   only where asked for

The bank is an initializer, so it lives on the device with the model's weights: row 0 is zero, and
row o + 1 is overlay o times its blend weight. The image itself is thus the image plus zero, which
comes through to the last bit (except that a -0.0 may become 0.0), and a blend costs two gathers and
one addition. One call serves any mix of rounds and requests; only three small inputs go in and two
small outputs come out. :func:`guard.detection.superimpose.blend_pairs` is the reference this graph
is tested against.

Only operators that have meant the same since opset 9 are used, so that the graph can be put
around a model of any later opset without converting the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from guard.arrays import Overlays
from guard.artifact.profile import InputSpec, OutputSpec
from guard.detection.capabilities.layer_distances import Layer
from guard.detection.superimpose import BlendRule
from guard.errors import UnfitModelError
from guard.runtime.layer_outputs import add_features
from guard.runtime.node_list import NodeList

__all__ = [
    "ENTROPY",
    "FEATURES",
    "IMAGES",
    "IMAGE_INDEX",
    "LOGITS",
    "OVERLAY_INDEX",
    "build_check_graph",
    "probabilities_name",
]

_PREFIX = "guard_check/"
IMAGES = _PREFIX + "images"
IMAGE_INDEX = _PREFIX + "image_index"
OVERLAY_INDEX = _PREFIX + "overlay_index"
LOGITS = _PREFIX + "logits"
ENTROPY = _PREFIX + "entropy_bits"
FEATURES = _PREFIX + "features"
_PROBABILITIES = _PREFIX + "probabilities"

_ELEMENT = {
    "FP32": TensorProto.FLOAT,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "UINT8": TensorProto.UINT8,
}
_HELD = {**_ELEMENT, "BF16": TensorProto.FLOAT}  # what numpy holds images in, and feeds
_OLDEST_OPSET = 9
_LOWEST_LOG = -1e30
_TINY = float(np.finfo(np.float32).tiny)


def build_check_graph(
    model: onnx.ModelProto,
    *,
    source: InputSpec,
    sink: OutputSpec,
    overlays: Overlays,
    blend: BlendRule,
    layers: Sequence[Layer] = (),
) -> onnx.ModelProto:
    """Return the model wrapped in its check; ``model`` itself is left as it was.

    Args:
        model: The classifier, weights inline.
        source: Its image input.
        sink: Its class output.
        overlays: Clean images in the model's input space.
        blend: The blend rule, which is built in.
        layers: Activations to return of each pair as one more output, ``FEATURES``; none for no such output.

    Raises:
        UnfitModelError: If the model's opset is older than 9, a tensor is named like ours, or a layer is not
            there.
    """
    _check_fits(model)
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    wrapped.ir_version = max(wrapped.ir_version, 4)  # initializers that are not inputs
    before, after = NodeList(_PREFIX), NodeList(_PREFIX)
    _add_blend(before, source, overlays, blend)
    _add_entropy(after, sink)
    graph = wrapped.graph
    inner = list(graph.node)
    if layers:
        add_features(after, inner, layers, _PREFIX, FEATURES)
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*before.nodes, *inner, *after.nodes])
    graph.initializer.extend([*before.constants, *after.constants])
    _replace_inputs(graph, source)
    graph.output.extend(
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["p", sink.classes]),
            helper.make_tensor_value_info(ENTROPY, TensorProto.FLOAT, ["p"]),
        ]
    )
    if layers:
        width = sum(layer.width for layer in layers)
        graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["p", width]))
    return wrapped


def probabilities_name(sink: OutputSpec) -> str:
    """Return the name of the tensor within the graph that holds the probabilities, float32 (p, k)."""
    return _PROBABILITIES if sink.kind == "logits" else LOGITS


def _check_fits(model: onnx.ModelProto) -> None:
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    if opset < _OLDEST_OPSET:
        raise UnfitModelError(
            f"the model uses ONNX opset {opset}, expected {_OLDEST_OPSET} or newer; export it again"
        )
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names.update(value.name for value in graph.input)
    names.update(tensor.name for tensor in graph.initializer)
    clash = sorted(name for name in names if name.startswith(_PREFIX))
    if clash:
        raise UnfitModelError(
            f"the model has a tensor named {clash[0]!r}, and names under {_PREFIX!r} are the guard's own; "
            f"was the model wrapped before? calibrate the original"
        )


def _replace_inputs(graph: onnx.GraphProto, source: InputSpec) -> None:
    kept = [value for value in graph.input if value.name != source.name]
    del graph.input[:]
    graph.input.extend(
        [
            helper.make_tensor_value_info(IMAGES, _HELD[source.datatype], ["n", *source.shape]),
            helper.make_tensor_value_info(IMAGE_INDEX, TensorProto.INT64, ["p"]),
            helper.make_tensor_value_info(OVERLAY_INDEX, TensorProto.INT64, ["p"]),
            *kept,
        ]
    )


def _add_blend(g: NodeList, source: InputSpec, overlays: Overlays, blend: BlendRule) -> None:
    left = g.node("Gather", [IMAGES, IMAGE_INDEX], _PREFIX + "left", axis=0)
    if _HELD[source.datatype] != TensorProto.FLOAT:
        left = g.node("Cast", [left], _PREFIX + "left_fp32", to=TensorProto.FLOAT)
    row = g.node("Add", [OVERLAY_INDEX, g.constant("one", np.array(1, np.int64))], _PREFIX + "bank_row")
    right = g.node("Gather", [g.constant("bank", _bank(overlays, blend)), row], _PREFIX + "right", axis=0)
    has_overlay = _add_has_overlay(g, row) if blend.clip or blend.image_weight != 1.0 else ""
    weighted = left if blend.image_weight == 1.0 else _add_image_weight(g, left, has_overlay, blend)
    plain = source.datatype == "FP32" and not blend.clip
    blended = g.node("Add", [weighted, right], source.name if plain else _PREFIX + "blended")
    if blend.clip:
        blended = _add_clip(g, source, blended, left, has_overlay)
    if source.datatype == "UINT8":
        blended = _add_rounding(g, blended)
    if not plain:
        g.node("Cast", [blended], source.name, to=_ELEMENT[source.datatype])


def _bank(overlays: Overlays, blend: BlendRule) -> np.ndarray:
    weighted = np.float32(blend.overlay_weight) * overlays.astype(np.float32)
    return np.concatenate([np.zeros_like(weighted[:1]), weighted])


def _add_image_weight(g: NodeList, left: str, has_overlay: str, blend: BlendRule) -> str:
    weight = g.constant("image_weight", np.array(blend.image_weight, np.float32))
    weighted = g.node("Mul", [left, weight], _PREFIX + "weighted")
    return g.node("Where", [has_overlay, weighted, left], _PREFIX + "weighted_where_blended")


def _add_clip(g: NodeList, source: InputSpec, blended: str, left: str, has_overlay: str) -> str:
    low, high = source.value_range.bounds()
    floored = g.node("Max", [blended, g.constant("low", low)], _PREFIX + "floored")
    clipped = g.node("Min", [floored, g.constant("high", high)], _PREFIX + "clipped")
    return g.node("Where", [has_overlay, clipped, left], _PREFIX + "clipped_where_blended")


def _add_has_overlay(g: NodeList, row: str) -> str:
    flat = g.node("Cast", [row], _PREFIX + "has_overlay_flat", to=TensorProto.BOOL)
    shape = g.constant("column_shape", np.array([-1, 1, 1, 1], np.int64))
    return g.node("Reshape", [flat, shape], _PREFIX + "has_overlay")


def _add_rounding(g: NodeList, blended: str) -> str:
    half = g.constant("half", np.array(0.5, np.float32))
    shifted = g.node("Add", [blended, half], _PREFIX + "shifted")
    rounded = g.node("Floor", [shifted], _PREFIX + "rounded")
    floored = g.node(
        "Max", [rounded, g.constant("uint8_low", np.array(0.0, np.float32))], _PREFIX + "uint8_floored"
    )
    return g.node(
        "Min", [floored, g.constant("uint8_high", np.array(255.0, np.float32))], _PREFIX + "saturated"
    )


def _add_entropy(g: NodeList, sink: OutputSpec) -> None:
    logits = g.node("Cast", [sink.name], LOGITS, to=TensorProto.FLOAT)
    if sink.kind == "logits":
        probabilities = g.node("Softmax", [logits], _PROBABILITIES, axis=1)
        log = g.node("LogSoftmax", [logits], _PREFIX + "log", axis=1)
        log = g.node(
            "Max", [log, g.constant("lowest_log", np.array(_LOWEST_LOG, np.float32))], _PREFIX + "finite_log"
        )
    else:
        probabilities = logits
        tiny = g.constant("tiny", np.array(_TINY, np.float32))
        log = g.node("Log", [g.node("Max", [logits, tiny], _PREFIX + "positive")], _PREFIX + "log")
    terms = g.node("Mul", [probabilities, log], _PREFIX + "terms")
    to_bits = g.constant("to_bits", np.full((sink.classes, 1), -1.0 / math.log(2.0), np.float32))
    column = g.node("MatMul", [terms, to_bits], _PREFIX + "entropy_column")
    flat = g.constant("flat_shape", np.array([-1], np.int64))
    g.node("Reshape", [column, flat], ENTROPY)
