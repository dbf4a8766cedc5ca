"""Copies of a model that differ in a few weights, joined into one graph that computes what they share once.

A node is made anew for a copy only where something that it reads is another there; all before it, and every
other weight, is shared. The joined graph of amplified last layers is thus hardly larger than the model, and
cheaper to run than the copies one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from calibration.capabilities.base import Copies
from guard.artifact import OutputSpec
from guard.artifact.opinions import COPIES_OUTPUT

__all__ = ["joined", "why_not_joined"]

_PREFIX: Final = "copies/"


def why_not_joined(model: onnx.ModelProto) -> str:
    """Return why copies of a model cannot be joined; nothing where they can."""
    kinds = {AttributeProto.GRAPH, AttributeProto.GRAPHS}
    nested = [node for node in model.graph.node if any(each.type in kinds for each in node.attribute)]
    if nested:
        return f"the model has operators with graphs of their own inside ({nested[0].op_type})"
    return ""


def joined(model: onnx.ModelProto, sink: OutputSpec, weights: Sequence[Mapping[str, np.ndarray]]) -> Copies:
    """Return copies of a model as one graph.

    Args:
        model: The classifier, weights inline.
        sink: Its class output.
        weights: For each copy, the weights that are others there, by name.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    graph.ir_version = max(graph.ir_version, 4)  # initializers that are not inputs
    own = graph.graph
    outputs = []
    for place, changed in enumerate(weights):
        names = {name: f"{_PREFIX}{place}/{name}" for name in changed}
        own.initializer.extend(numpy_helper.from_array(value, names[name]) for name, value in changed.items())
        own.node.extend(_made_anew(model.graph, names, place))
        outputs.append(names.get(sink.name, sink.name))
    own.node.append(helper.make_node("Concat", outputs, [COPIES_OUTPUT], name=COPIES_OUTPUT, axis=1))
    _keep_what_is_used(own)
    del own.output[:]
    element = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
    width = len(weights) * sink.classes
    own.output.append(helper.make_tensor_value_info(COPIES_OUTPUT, element[sink.datatype], ["n", width]))
    return Copies(graph, COPIES_OUTPUT, len(weights))


def _keep_what_is_used(graph: onnx.GraphProto) -> None:
    """Remove what no copy needs: the model's own last layers."""
    used, nodes = {COPIES_OUTPUT}, []
    for node in reversed(graph.node):
        if any(name in used for name in node.output):
            used.update(node.input)
            nodes.append(node)
    given = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in given]  # old exporters list weights there too
    weights = [one for one in graph.initializer if one.name in used]
    del graph.node[:], graph.input[:], graph.initializer[:], graph.value_info[:]
    graph.input.extend(inputs)
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)


def _made_anew(graph: onnx.GraphProto, names: dict[str, str], place: int) -> list[onnx.NodeProto]:
    """Return the nodes that a copy has of its own, and add what they give to its names."""
    made = []
    for node in graph.node:  # in topological order, as ONNX has them
        if not any(name in names for name in node.input):
            continue
        names.update({name: f"{_PREFIX}{place}/{name}" for name in node.output if name})
        anew = onnx.NodeProto()
        anew.CopyFrom(node)
        anew.name = f"{_PREFIX}{place}/{node.name}" if node.name else ""
        for there in (anew.input, anew.output):
            changed = [names.get(name, name) for name in there]
            del there[:]
            there.extend(changed)
        made.append(anew)
    return made
