"""The loop of the guarded graph: the check graph over all overlays, some at a time, and what is summed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from guard.artifact import InputSpec, OutputSpec
from guard.export.parts import Part, Parts
from guard.export.whole_detector import WholeDetector
from guard.runtime.check_graph import IMAGE_INDEX, IMAGES, LOGITS, OVERLAY_INDEX
from guard.runtime.node_list import NodeList

__all__ = ["add_loop"]

_PREFIX = "guard_check/whole/"
_BODY = _PREFIX + "body/"
_PASS, _GO_ON, _SUMS, _KEPT = (_BODY + name for name in ("pass", "go_on", "sums", "kept"))
_PAIRS, _ROWS = _PREFIX + "pairs_shape", _PREFIX + "rows"


def add_loop(
    g: NodeList,
    check: onnx.GraphProto,
    source: InputSpec,
    sink: OutputSpec,
    detector: WholeDetector,
    parts: Parts,
) -> tuple[str, str]:
    """Add the loop over a check graph.

    Args:
        g: What the guarded graph is made of; gets the loop.
        check: The check graph around the model; it is taken apart.
        source: The model's input, which is the guarded graph's.
        sink: The model's output.
        detector: Says what is summed.
        parts: Which overlays go into which pass.

    Returns:
        Names of the sums, float64 (s, n), and of the model's outputs, float32 (n, k).
    """
    _add_pairs(g, source, parts.length)
    body = _body(check, source, sink, detector, parts)
    count = g.constant("passes", np.array(parts.count, np.int64))
    always = g.constant("always", np.array(True, np.bool_))
    sums, logits = _PREFIX + "sums", _PREFIX + "logits"
    begin = _add_beginnings(g, sink, detector.n_sums)
    loop = helper.make_node("Loop", [count, always, *begin], [sums, logits], _PREFIX + "loop", body=body)
    g.nodes.append(loop)
    return sums, logits


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


def _add_beginnings(g: NodeList, sink: OutputSpec, n_sums: int) -> tuple[str, str]:
    zero_64 = helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])
    zero_32 = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    height = g.constant("n_sums", np.array([n_sums], np.int64))
    classes = g.constant("classes", np.array([sink.classes], np.int64))
    sums = g.node("Concat", [height, _PREFIX + "n"], _PREFIX + "sums_shape", axis=0)
    logits = g.node("Concat", [_PREFIX + "n", classes], _PREFIX + "logits_shape", axis=0)
    return (
        g.node("ConstantOfShape", [sums], _PREFIX + "no_sums", value=zero_64),
        g.node("ConstantOfShape", [logits], _PREFIX + "no_logits", value=zero_32),
    )


def _body(
    check: onnx.GraphProto, source: InputSpec, sink: OutputSpec, detector: WholeDetector, parts: Parts
) -> onnx.GraphProto:
    before, after = NodeList(_BODY), NodeList(_BODY)
    _add_part(before, parts)
    kept = _add_kept(after)
    part = Part(parts, _PASS, _PAIRS, kept)
    new_sums = after.node("Add", [_SUMS, detector.add_part_sums(after, part)], _BODY + "new_sums")
    carried = [
        _value(_GO_ON, TensorProto.BOOL, []),
        _value(_SUMS, TensorProto.DOUBLE, [detector.n_sums, "n"]),
        _value(_KEPT, TensorProto.FLOAT, ["n", sink.classes]),
    ]
    goes_on = after.node("Identity", [_GO_ON], _BODY + "goes_on")
    body = onnx.GraphProto()
    body.CopyFrom(check)
    inner = list(body.node)
    for node in inner:
        _rename(node, {source.name: _BODY + "model_input", sink.name: _BODY + "model_output"})
    del body.node[:], body.input[:], body.output[:], body.value_info[:]
    body.node.extend([*before.nodes, *inner, *after.nodes])
    body.initializer.extend([*before.constants, *after.constants])
    body.input.extend([_value(_PASS, TensorProto.INT64, []), *carried])
    body.output.extend(_renamed(carried, (goes_on, new_sums, kept)))
    return body


def _add_part(g: NodeList, parts: Parts) -> None:
    part = g.node("Gather", [g.constant("parts", parts.overlays), _PASS], _BODY + "part", axis=0)
    column = g.node(
        "Reshape", [part, g.constant("column", np.array([-1, 1], np.int64))], _BODY + "part_column"
    )
    table = g.node("Expand", [column, _PAIRS], _BODY + "overlay_table")
    g.node("Reshape", [table, g.constant("flat", np.array([-1], np.int64))], OVERLAY_INDEX)


def _add_kept(g: NodeList) -> str:
    """Keep the first n answers of the first pass: those to the images themselves."""
    alone = g.node("Gather", [LOGITS, _ROWS], _BODY + "first_logits", axis=0)
    first = g.node("Equal", [_PASS, g.constant("first", np.array(0, np.int64))], _BODY + "is_first")
    return g.node("Where", [first, alone, _KEPT], _BODY + "new_kept")


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename tensors in a node and in the graphs within it: the guarded graph's own names must be free."""
    for field in (node.input, node.output):
        for place, name in enumerate(field):
            field[place] = names.get(name, name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            for inner in graph.node:
                _rename(inner, names)


def _renamed(values: list[onnx.ValueInfoProto], names: tuple[str, ...]) -> list[onnx.ValueInfoProto]:
    renamed = []
    for value, name in zip(values, names, strict=True):
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        copy.name = name
        renamed.append(copy)
    return renamed


def _value(name: str, element: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)
