"""Walks an ONNX graph and converts it, node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import onnx
import onnx.inliner
import torch
from torch import fx

from calibration.errors import UnsupportedOperatorError
from calibration.onnx_import.builder import SAMPLE_BATCHES, GraphBuilder
from calibration.onnx_import.functions import cast
from calibration.onnx_import.op import Op, qualified_name
from calibration.onnx_import.ops_sizes import convert_sizes, is_size_arithmetic
from calibration.onnx_import.registry import CONVERTERS, refuse_missing
from calibration.onnx_import.tensors import dtype_of, tensor_from
from calibration.onnx_import.values import Constant, Value
from guard.errors import UnfitModelError

__all__ = ["OLDEST_OPSET", "import_onnx"]

OLDEST_OPSET: Final = 11
_FREE_SIDES: Final = ((229, 263), (224, 256), (64, 96))
"""Pairs of lengths to try for axes of space that the graph leaves open.

Primes come first: what divides both of a pair looks like a constant, such as the padding to a multiple of 32.
"""

_FAILURES: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a converter, or torch within it, raises on a graph that contradicts itself."""


def import_onnx(model: onnx.ModelProto, where: str) -> fx.GraphModule:
    """Turn an ONNX graph into a torch module that can be trained.

    Every node with weights becomes a layer of ``torch.nn``, named as in the graph; the rest becomes layers
    without weights and functions. The module takes batches of any size, also where the graph is bound to one.
    Weights are float32, whatever the graph stores. Constants that act on the image before any layer does
    (they normalise it) are not trained. A weight that several layers share becomes one for each, since
    exporters merge weights that happen to be equal.

    Args:
        model: The parsed model, weights inline; opset 11 or newer.
        where: Its name, for errors.

    Returns:
        The module, in evaluation mode. It takes what the graph takes (float32 where that is float16; uint8
        models take floats of the same range too) and gives what the graph gives, as float32.

    Raises:
        UnsupportedOperatorError: If operators, or forms of them, cannot be imported; all that are missing
            are named at once.
        UnfitModelError: If the graph cannot be read, or does not run.
    """
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    opset = _opset(model, where)
    refuse_missing(model, where)
    free = _free_inputs(model.graph)
    sides = _FREE_SIDES if any(None in _dimensions(value)[1:] for value in free) else ((0, 0),)
    for attempt, pair in enumerate(sides):
        try:
            module = _Import(model.graph, opset, where).run(free, pair)
            if _fixed_batch(model.graph) is not None:
                _check_rows(module, free[0], pair[0])
            return module
        except _FAILURES as error:
            if attempt == len(sides) - 1:
                batch = _fixed_batch(model.graph)
                way_out = (
                    f"; it is bound to batches of {batch}, export it with a free batch axis" if batch else ""
                )
                raise UnfitModelError(f"{where} cannot be imported: {_first_line(error)}{way_out}") from error
    raise AssertionError("unreachable")


def _check_rows(module: fx.GraphModule, source: onnx.ValueInfoProto, side: int) -> None:
    """Refuse a graph that was set free of its batch size if one image's answer depends on another."""
    dtype = dtype_of(source.type.tensor_type.elem_type, source.name)
    row = [size or side for size in _dimensions(source)[1:]]
    images = torch.rand((3, *row), generator=torch.Generator().manual_seed(0))
    images = images if dtype.is_floating_point else (images * 255).to(dtype)
    with torch.no_grad():
        together = module(images)
        alone = [module(images[place : place + 1]) for place in range(3)]
    if isinstance(together, torch.Tensor) and not torch.allclose(together, torch.cat(alone), 1e-3, 1e-3):
        raise ValueError("an image's answer depends on the others of its batch")


class _Import:
    """One walk over a graph."""

    def __init__(self, graph: onnx.GraphProto, opset: int, where: str) -> None:
        self.graph = graph
        self.opset = opset
        self.where = where
        self.builder = GraphBuilder(_fixed_batch(graph))
        self.values: dict[str, Any] = {}
        self.uses = _uses(graph)
        self.adders = _adders(graph)

    def run(self, free: Sequence[onnx.ValueInfoProto], sides: tuple[int, int]) -> fx.GraphModule:
        for value in free:
            self._add_input(value, sides)
        self._convert(self.graph)
        outputs = [self._value(output.name) for output in self.graph.output]
        return self.builder.finish(outputs[0] if len(outputs) == 1 else tuple(outputs))

    def _add_input(self, value: onnx.ValueInfoProto, sides: tuple[int, int]) -> None:
        name, where = value.name, f"{self.where}: input {value.name!r}"
        dtype = dtype_of(value.type.tensor_type.elem_type, where)
        shapes = [
            [batch, *(side if size is None else size for size in _dimensions(value)[1:])]
            for batch, side in zip(SAMPLE_BATCHES, sides, strict=True)
        ]
        node: Any = self.builder.placeholder(name, shapes, dtype)
        half = value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT and dtype == torch.float32
        self.values[name] = self.builder.call(cast, node, dtype) if half else node

    def _convert(self, graph: onnx.GraphProto) -> None:
        """Convert the nodes of a graph or of a branch; names of the graph around it are seen within."""
        for tensor in graph.initializer:
            value = tensor_from(tensor)
            self.values[tensor.name] = Constant(value, value.is_floating_point(), tensor.name)
        if graph.sparse_initializer:
            raise UnfitModelError(
                f"{self.where} holds sparse weights, which cannot be trained; store them dense"
            )
        for node in graph.node:
            with self.builder.converting(node):
                outputs = self._branch(node) if node.op_type == "If" else self._node(node)
            self.values.update(zip(node.output, outputs, strict=False))

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{name!r} is read before any node gives it; export the model again")
        return self.values[name]

    def _node(self, node: onnx.NodeProto) -> tuple[Any, ...]:
        op = Op(
            node=node,
            inputs=tuple(self._value(name) if name else None for name in node.input),
            opset=self.opset,
            where=self.where,
            used=tuple(bool(name) and self.uses[name] > 0 for name in node.output),
            bias_name=self.adders.get(node.output[0], ""),
        )
        converter = convert_sizes if is_size_arithmetic(op) else CONVERTERS[node.op_type]
        try:
            result = converter(self.builder, op)
        except _FAILURES as error:
            raise RuntimeError(
                f"{qualified_name(node)} (node {node.name!r}): {_first_line(error)}"
            ) from error
        return result if isinstance(result, tuple) else (result,)

    def _branch(self, node: onnx.NodeProto) -> tuple[Value, ...]:
        """Convert the branch of an ``If`` that is taken."""
        condition = self.values[node.input[0]]
        if not isinstance(condition, Constant):
            raise UnsupportedOperatorError(
                f"{self.where}: If (node {node.name!r}, opset {self.opset}) decides by the data, and only a "
                f"condition known at import is supported",
                operators=("If",),
            )
        chosen = "then_branch" if bool(condition.tensor.item()) else "else_branch"
        branch = {attribute.name: attribute.g for attribute in node.attribute}[chosen]
        self._convert(branch)
        return tuple(self.values[output.name] for output in branch.output)


def _opset(model: onnx.ModelProto, where: str) -> int:
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    if opset < OLDEST_OPSET:
        raise UnfitModelError(
            f"{where} is written in opset {opset}; expected {OLDEST_OPSET} or newer, export it again or "
            f"convert it with onnx.version_converter"
        )
    return opset


def _free_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    defaulted = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in defaulted]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _fixed_batch(graph: onnx.GraphProto) -> int | None:
    free = _free_inputs(graph)
    dimensions = _dimensions(free[0]) if free else []
    return dimensions[0] if dimensions else None


def _uses(graph: onnx.GraphProto) -> Counter[str]:
    """Count how often each name is read, in branches too."""
    counts = Counter(name for node in graph.node for name in node.input)
    counts.update(output.name for output in graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                counts.update(_uses(attribute.g))
    return counts


def _adders(graph: onnx.GraphProto) -> dict[str, str]:
    """For each value that is read once, by an ``Add``: the name of what is added to it."""
    uses, adders = _uses(graph), {}
    for node in graph.node:
        if node.op_type == "Add":
            for name, other in (tuple(node.input), tuple(reversed(node.input))):
                if uses[name] == 1:
                    adders[name] = other
    return adders


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
