"""The loop of the fused graph: the check graph over all overlays, some at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from jaxtyping import Float64, Int64
from onnx import AttributeProto, TensorProto, helper

from guard.artifact import InputSpec, OutputSpec
from guard.runtime.check_graph import ENTROPY, IMAGE_INDEX, IMAGES, LOGITS, OVERLAY_INDEX
from guard.runtime.node_list import NodeList

__all__ = ["add_check", "parts_of"]

_PREFIX = "guard_check/fused/"
_BODY = _PREFIX + "body/"
_PASS, _GO_ON, _SUM, _KEPT = (_BODY + name for name in ("pass", "go_on", "sum", "kept"))
_PAIRS, _ROWS = _PREFIX + "pairs_shape", _PREFIX + "rows"


def parts_of(n_overlays: int, most: int) -> tuple[Int64[np.ndarray, "i g"], Float64[np.ndarray, "i g"]]:
    """Cut the image itself (-1) and the overlays into parts of one length, at most ``most``.

    Args:
        n_overlays: N.
        most: Largest length of a part, at least 1.

    Returns:
        The parts, the last filled up with -1; and the weight of each entropy: 1 for a blend, 0 for the
        image itself.

    Examples:
        >>> parts_of(3, 3)[0].tolist()
        [[-1, 0], [1, 2]]
        >>> parts_of(4, 3)[0].tolist()
        [[-1, 0, 1], [2, 3, -1]]
    """
    if n_overlays < 1 or most < 1:
        raise ValueError(f"expected at least one overlay and one a part, got {n_overlays} and {most}")
    count = -(-(n_overlays + 1) // most)
    length = -(-(n_overlays + 1) // count)
    index = np.full(count * length, -1, np.int64)
    index[1 : n_overlays + 1] = np.arange(n_overlays)
    parts = index.reshape(count, length)
    return parts, (parts >= 0).astype(np.float64)


def add_check(
    g: NodeList,
    check: onnx.GraphProto,
    source: InputSpec,
    sink: OutputSpec,
    n_overlays: int,
    overlays_per_pass: int,
) -> tuple[str, str]:
    """Add the loop over a check graph.

    Args:
        g: What the fused graph is made of; gets the loop.
        check: The check graph around the model; it is taken apart.
        source: The model's input, which is the fused graph's.
        sink: The model's output.
        n_overlays: N.
        overlays_per_pass: Most overlays in one pass.

    Returns:
        Names of the entropy sums, float64 (n) in bits, and of the model's outputs, float32 (n, k).
    """
    parts, weights = parts_of(n_overlays, overlays_per_pass)
    _add_pairs(g, source, parts.shape[1])
    body = _body(check, source, sink, parts, weights)
    count = g.constant("passes", np.array(len(parts), np.int64))
    always = g.constant("always", np.array(True, np.bool_))
    total, logits = _PREFIX + "sum", _PREFIX + "logits"
    begin = _add_beginnings(g, sink)
    loop = helper.make_node("Loop", [count, always, *begin], [total, logits], _PREFIX + "loop", body=body)
    g.nodes.append(loop)
    return total, logits


def _add_pairs(g: NodeList, source: InputSpec, length: int) -> None:
    """Every image with every overlay of a part: (g, n), the images running fastest."""
    g.node("Identity", [source.name], IMAGES)
    shape = g.node("Shape", [IMAGES], _PREFIX + "shape")
    count = g.node("Gather", [shape, g.constant("first", np.array([0], np.int64))], _PREFIX + "n", axis=0)
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    there = g.node("ConstantOfShape", [count], _PREFIX + "there", value=one)
    flat = g.constant("flat", np.array([-1], np.int64))
    g.node("Reshape", [g.node("NonZero", [there], _PREFIX + "row_numbers"), flat], _ROWS)
    g.node("Concat", [g.constant("part", np.array([length], np.int64)), count], _PAIRS, axis=0)
    table = g.node("Expand", [_ROWS, _PAIRS], _PREFIX + "image_table")
    g.node("Reshape", [table, flat], IMAGE_INDEX)


def _add_beginnings(g: NodeList, sink: OutputSpec) -> tuple[str, str]:
    zero_64 = helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])
    zero_32 = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    classes = g.constant("classes", np.array([sink.classes], np.int64))
    shape = g.node("Concat", [_PREFIX + "n", classes], _PREFIX + "logits_shape", axis=0)
    return (
        g.node("ConstantOfShape", [_PREFIX + "n"], _PREFIX + "no_sum", value=zero_64),
        g.node("ConstantOfShape", [shape], _PREFIX + "no_logits", value=zero_32),
    )


def _body(
    check: onnx.GraphProto, source: InputSpec, sink: OutputSpec, parts: np.ndarray, weights: np.ndarray
) -> onnx.GraphProto:
    before, after = NodeList(_BODY), NodeList(_BODY)
    _add_part(before, parts)
    outputs = [_value(after.node("Identity", [_GO_ON], _BODY + "goes_on"), TensorProto.BOOL, [])]
    outputs.append(_value(_add_sum(after, weights), TensorProto.DOUBLE, ["n"]))
    outputs.append(_value(_add_kept(after), TensorProto.FLOAT, ["n", sink.classes]))
    body = onnx.GraphProto()
    body.CopyFrom(check)
    inner = list(body.node)
    for node in inner:
        _rename(node, {source.name: _BODY + "model_input", sink.name: _BODY + "model_output"})
    del body.node[:], body.input[:], body.output[:], body.value_info[:]
    body.node.extend([*before.nodes, *inner, *after.nodes])
    body.initializer.extend([*before.constants, *after.constants])
    body.input.extend(
        [
            _value(_PASS, TensorProto.INT64, []),
            _value(_GO_ON, TensorProto.BOOL, []),
            _value(_SUM, TensorProto.DOUBLE, ["n"]),
            _value(_KEPT, TensorProto.FLOAT, ["n", sink.classes]),
        ]
    )
    body.output.extend(outputs)
    return body


def _add_part(g: NodeList, parts: np.ndarray) -> None:
    part = g.node("Gather", [g.constant("parts", parts), _PASS], _BODY + "part", axis=0)
    column = g.node(
        "Reshape", [part, g.constant("column", np.array([-1, 1], np.int64))], _BODY + "part_column"
    )
    table = g.node("Expand", [column, _PAIRS], _BODY + "overlay_table")
    g.node("Reshape", [table, g.constant("flat", np.array([-1], np.int64))], OVERLAY_INDEX)


def _add_sum(g: NodeList, weights: np.ndarray) -> str:
    zero = g.constant("zero", np.array(0.0, np.float32))
    negative = g.node("Less", [ENTROPY, zero], _BODY + "negative")
    bits = g.node("Where", [negative, zero, ENTROPY], _BODY + "bits")  # NaN stays NaN
    table = g.node("Reshape", [bits, _PAIRS], _BODY + "bits_table")
    wide = g.node("Cast", [table], _BODY + "bits_fp64", to=TensorProto.DOUBLE)
    weight = g.node("Gather", [g.constant("weights", weights), _PASS], _BODY + "weight", axis=0)
    part = g.node("MatMul", [weight, wide], _BODY + "part_sum")
    return g.node("Add", [_SUM, part], _BODY + "new_sum")


def _add_kept(g: NodeList) -> str:
    """Keep the first n answers of the first pass: those to the images themselves."""
    alone = g.node("Gather", [LOGITS, _ROWS], _BODY + "first_logits", axis=0)
    first = g.node("Equal", [_PASS, g.constant("first", np.array(0, np.int64))], _BODY + "is_first")
    return g.node("Where", [first, alone, _KEPT], _BODY + "new_kept")


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename tensors in a node and in the graphs within it: the fused graph's own names must be free."""
    for field in (node.input, node.output):
        for place, name in enumerate(field):
            field[place] = names.get(name, name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            for inner in graph.node:
                _rename(inner, names)


def _value(name: str, element: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)
