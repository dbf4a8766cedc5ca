"""The loop of the guarded graph: the check graph over all overlays, some at a time, and what is summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from guard.artifact import InputSpec, OutputSpec
from guard.export.parts import Part, Parts
from guard.export.whole_detector import Seen, WholeDetector
from guard.runtime.check_graph import FEATURES, IMAGE_INDEX, IMAGES, LOGITS, OVERLAY_INDEX
from guard.runtime.node_list import NodeList

__all__ = ["add_loop"]

_PREFIX = "guard_check/whole/"
_BODY = _PREFIX + "body/"
_PASS, _GO_ON, _SUMS = (_BODY + name for name in ("pass", "go_on", "sums"))
_PAIRS, _ROWS = _PREFIX + "pairs_shape", _PREFIX + "rows"


@dataclass(frozen=True)
class _Kept:
    """A tensor of the check graph of which the rows of the images themselves are kept.

    Attributes:
        name: What it is called here.
        tensor: What it is called in the check graph, float32 (p, width).
    """

    name: str
    tensor: str
    width: int

    @property
    def carried(self) -> str:
        """Its name where the body takes it over from the pass before."""
        return f"{_BODY}kept_{self.name}"


def add_loop(
    g: NodeList,
    check: onnx.GraphProto,
    source: InputSpec,
    sink: OutputSpec,
    detector: WholeDetector,
    parts: Parts,
) -> Seen:
    """Add the loop over a check graph.

    Args:
        g: What the guarded graph is made of; gets the loop.
        check: The check graph around the model; it is taken apart.
        source: The model's input, which is the guarded graph's.
        sink: The model's output.
        detector: Says what is summed.
        parts: Which overlays go into which pass.

    Returns:
        The names of what it leaves.
    """
    _add_pairs(g, source, parts.length)
    kept = _kept(sink, detector)
    body = _body(check, {source.name: "model_input", sink.name: "model_output"}, detector, parts, kept)
    count = g.constant("passes", np.array(parts.count, np.int64))
    always = g.constant("always", np.array(True, np.bool_))
    begin = [_add_zeros(g, "sums", detector.n_sums, by_image=False)]
    begin += [_add_zeros(g, one.name, one.width, by_image=True) for one in kept]
    left = [_PREFIX + "sums", *(_PREFIX + one.name for one in kept)]
    g.nodes.append(helper.make_node("Loop", [count, always, *begin], left, _PREFIX + "loop", body=body))
    return Seen(left[0], left[1], left[2] if detector.layers else None)


def _kept(sink: OutputSpec, detector: WholeDetector) -> list[_Kept]:
    logits = _Kept("logits", LOGITS, sink.classes)
    width = sum(layer.width for layer in detector.layers)
    return [logits, _Kept("features", FEATURES, width)] if detector.layers else [logits]


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


def _add_zeros(g: NodeList, name: str, width: int, *, by_image: bool) -> str:
    """Add zeros to begin with: float32 (n, width), or float64 (width, n)."""
    element = TensorProto.FLOAT if by_image else TensorProto.DOUBLE
    zero = helper.make_tensor("zero", element, [1], [0.0])
    size = g.constant(f"{name}_width", np.array([width], np.int64))
    axes = [_PREFIX + "n", size] if by_image else [size, _PREFIX + "n"]
    shape = g.node("Concat", axes, f"{_PREFIX}{name}_shape", axis=0)
    return g.node("ConstantOfShape", [shape], f"{_PREFIX}no_{name}", value=zero)


def _body(
    check: onnx.GraphProto,
    renamed: Mapping[str, str],
    detector: WholeDetector,
    parts: Parts,
    kept: list[_Kept],
) -> onnx.GraphProto:
    before, after = NodeList(_BODY), NodeList(_BODY)
    _add_part(before, parts)
    news = _add_kept(after, kept)
    part = Part(parts, _PASS, _PAIRS, news[0])
    sums = after.node("Add", [_SUMS, detector.add_part_sums(after, part)], _BODY + "new_sums")
    goes_on = after.node("Identity", [_GO_ON], _BODY + "goes_on")
    carried = [
        _value(_GO_ON, TensorProto.BOOL, []),
        _value(_SUMS, TensorProto.DOUBLE, [detector.n_sums, "n"]),
        *(_value(one.carried, TensorProto.FLOAT, ["n", one.width]) for one in kept),
    ]
    body = onnx.GraphProto()
    body.CopyFrom(check)
    inner = list(body.node)
    for node in inner:
        _rename(node, {name: _BODY + new for name, new in renamed.items()})
    del body.node[:], body.input[:], body.output[:], body.value_info[:]
    body.node.extend([*before.nodes, *inner, *after.nodes])
    body.initializer.extend([*before.constants, *after.constants])
    body.input.extend([_value(_PASS, TensorProto.INT64, []), *carried])
    body.output.extend(_renamed(carried, [goes_on, sums, *news]))
    return body


def _add_part(g: NodeList, parts: Parts) -> None:
    part = g.node("Gather", [g.constant("parts", parts.overlays), _PASS], _BODY + "part", axis=0)
    column = g.node(
        "Reshape", [part, g.constant("column", np.array([-1, 1], np.int64))], _BODY + "part_column"
    )
    table = g.node("Expand", [column, _PAIRS], _BODY + "overlay_table")
    g.node("Reshape", [table, g.constant("flat", np.array([-1], np.int64))], OVERLAY_INDEX)


def _add_kept(g: NodeList, kept: list[_Kept]) -> list[str]:
    """Keep the first n rows of the first pass: those of the images themselves."""
    first = g.node("Equal", [_PASS, g.constant("first", np.array(0, np.int64))], _BODY + "is_first")
    return [
        g.node(
            "Where",
            [first, g.node("Gather", [one.tensor, _ROWS], f"{_BODY}first_{one.name}", axis=0), one.carried],
            f"{_BODY}new_{one.name}",
        )
        for one in kept
    ]


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


def _renamed(values: list[onnx.ValueInfoProto], names: list[str]) -> list[onnx.ValueInfoProto]:
    renamed = []
    for value, name in zip(values, names, strict=True):
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        copy.name = name
        renamed.append(copy)
    return renamed


def _value(name: str, element: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)
