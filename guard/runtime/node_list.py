"""Nodes and constants of an ONNX graph while it is being built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["NodeList"]


@dataclass
class NodeList:
    """What is added to a graph, in order.

    Attributes:
        prefix: What the names of constants begin with.
    """

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant; return its name, the prefix before it."""
        self.constants.append(numpy_helper.from_array(value, self.prefix + name))
        return self.prefix + name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; return the name of that, taken as it is."""
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output
