"""One node of an ONNX graph with its inputs resolved and its attributes typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import numpy as np
import onnx
from onnx import AttributeProto

from calibration.errors import UnsupportedOperatorError
from calibration.onnx_import.tensors import tensor_from
from calibration.onnx_import.values import Constant, Value

__all__ = ["Op", "domain_of", "qualified_name"]

T = TypeVar("T")


def domain_of(node: onnx.NodeProto) -> str:
    """Return the node's domain; ONNX's own is the empty string."""
    return "" if node.domain == "ai.onnx" else node.domain


def qualified_name(node: onnx.NodeProto) -> str:
    """Return ``Conv``, or ``com.microsoft::FusedConv`` for an operator that is not ONNX's own."""
    return f"{domain_of(node)}::{node.op_type}" if domain_of(node) else node.op_type


@dataclass(frozen=True, eq=False)
class Op:
    """A node to convert.

    Attributes:
        inputs: One value an input; None where an optional one is left out.
        opset: Version of the ONNX operators that the graph is written in.
        where: Name of the model, for errors.
        used: For each output, whether anything reads it.
        bias_name: Name of a constant that the only reader adds to the output, if that is so.
    """

    node: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    opset: int
    where: str
    used: tuple[bool, ...]
    bias_name: str = ""

    @property
    def type(self) -> str:
        """The operator's name."""
        return self.node.op_type

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """Attributes as Python values; strings decoded, tensors as torch tensors, graphs as they are."""
        return {attribute.name: _attribute_value(attribute) for attribute in self.node.attribute}

    def attribute(self, name: str, default: T) -> T:
        """Return an attribute, or the default where the node does not have it."""
        value: T = self.attributes.get(name, default)
        return value

    def has_input(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> Value:
        """Return an input that must be given."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            self.refuse(f"has no input {index}")
        return value

    def optional(self, index: int) -> Value | None:
        """Return an input, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Constant:
        """Return an input that must be known at import."""
        value = self.input(index)
        if not isinstance(value, Constant):
            self.refuse(f"takes its input {index} from the data, and only a constant one is known")
        return value

    def numbers(self, index: int) -> list[Any] | None:
        """Return a constant input as a list of numbers, or None where it is left out or empty."""
        if not self.has_input(index):
            return None
        return self.constant(index).tensor.reshape(-1).tolist() or None

    def axes(self, index: int = 1) -> list[int] | None:
        """Return the axes, an attribute in older opsets and input ``index`` in newer ones."""
        given: list[int] | None = self.attributes.get("axes")
        return given if given is not None else self.numbers(index)

    def refuse(self, reason: str) -> NoReturn:
        """Refuse this node for its form."""
        raise UnsupportedOperatorError(
            f"{self.where}: {qualified_name(self.node)} (node {self.node.name!r}, opset {self.opset}) "
            f"{reason}",
            operators=(qualified_name(self.node),),
        )


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRING:
        return value.decode()
    if attribute.type == AttributeProto.FLOAT:
        return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
    if attribute.type == AttributeProto.TENSOR:
        return tensor_from(value)
    return list(value) if attribute.type in {AttributeProto.INTS, AttributeProto.FLOATS} else value
