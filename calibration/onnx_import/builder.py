"""Grows the torch graph, node by node, and knows the shape of everything in it.

Theory of operation. Every node is tried, as it is added, on two sample batches of different size that hold
no data (torch's fake tensors). A dimension that comes out the same for both is a plain number from then on;
one that differs depends on the batch and becomes a :class:`Size`, read off the tensor at run time. So the
shape arithmetic that exporters write around every reshape folds away, but for the batch size, without a rule
for any of its operators. What has only constants for inputs is computed at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import onnx
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

from calibration.onnx_import import naming
from calibration.onnx_import.arguments import attach, eager, is_weight, known_now, leaves
from calibration.onnx_import.functions import new_full, stack_sizes
from calibration.onnx_import.values import Constant, Number, Size, Sizes, Value

__all__ = ["SAMPLE_BATCHES", "GraphBuilder"]

SAMPLE_BATCHES: Final = (11, 29)
"""Two batch sizes that no dimension of a model is likely to equal."""

_UNMOVABLE_RANK: Final = 5
"""``module.to(memory_format=torch.channels_last)`` fails on tensors of this many axes."""

Samples = tuple[Any, Any]


class GraphBuilder:
    """A torch graph being made.

    Attributes:
        fixed_batch: The batch size that the ONNX graph is bound to, or None. The torch graph is not.
        awaiting_bias: Linear layers that read their bias from an addition which follows them, if it is one.
    """

    def __init__(self, fixed_batch: int | None = None) -> None:
        self.fixed_batch = fixed_batch
        self.awaiting_bias: dict[fx.Node, nn.Linear] = {}
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._names = naming.Names()
        self._current: onnx.NodeProto | None = None
        self._placeholders: list[fx.Node] = []
        self._samples: dict[fx.Node, Samples] = {}
        self._weighted: set[fx.Node] = set()
        self._placed: dict[int, tuple[Constant, fx.Node]] = {}
        self._sizes: dict[tuple[fx.Node, int], Number] = {}

    @contextmanager
    def converting(self, node: onnx.NodeProto) -> Iterator[None]:
        """Name what is added within after this ONNX node."""
        outer, self._current = self._current, node
        yield
        self._current = outer

    # What goes into the graph.

    def placeholder(self, name: str, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> fx.Node:
        """Add an input, of one shape for each sample batch."""
        wish = naming.clean(name).replace(".", "_")
        node = self._graph.placeholder("images" if wish in {"", "self"} else wish)
        node.target = node.name  # which torch has made fit for an argument: "0" and "class" are none
        with self._fake:
            first, second = (torch.empty(tuple(shape), dtype=dtype) for shape in shapes)
        self._samples[node] = (first, second)
        self._placeholders.append(node)
        return node

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function on values; at once if all of them are constants.

        Returns:
            A value, or a tuple of constants if the function returns several and was called at once.
        """
        if known_now((arguments, options)):
            return self._compute(function, arguments, options)
        placed, placed_options = self._place(arguments), self._place(options)
        samples = self._try(function, placed, placed_options)
        return self._add("call_function", function, placed, placed_options, samples)

    def module(self, module: nn.Module, *arguments: Value, weight: str = "", bias: str = "") -> Any:
        """Add a layer and call it; at once if its inputs are constants.

        Args:
            module: The layer, with its weights.
            arguments: Its inputs.
            weight: Name of its weight in the ONNX graph, to name the layer after.
            bias: Name of its bias.
        """
        module.train(False)
        if known_now(arguments):
            return self._compute(module, arguments, {}, trainable=True)
        placed = self._place(arguments)
        samples = self._try(module, placed, {})
        path = self._names.take(self._layer_path(weight, bias))
        attach(self._root, path, module)
        node = self._add("call_module", path, placed, {}, samples)
        if next(module.parameters(), None) is not None:
            self._weighted.add(node)
        return node

    def item(self, value: Any, index: int) -> Any:
        """Return one of the several results of a call."""
        return value[index] if isinstance(value, tuple) else self.call(operator.getitem, value, index)

    def number(self, function: Callable[..., Any], *operands: Number) -> Number:
        """Compute a number; in the graph only if the batch size decides it."""
        first, second = (
            function(
                *(operand.samples[which] if isinstance(operand, Size) else operand for operand in operands)
            )
            for which in (0, 1)
        )
        if first == second:
            known: Number = first
            return known
        node = self._add("call_function", function, self._place(operands), {}, (first, second))
        return Size(self.number, node, (first, second))

    def full(self, sizes: Sequence[Number], value: int | float, dtype: torch.dtype) -> Any:
        """Return a tensor of one value; made at run time, by the model, if a size is known only then."""
        if known_now(list(sizes)):
            return Constant(torch.full(tuple(sizes), value, dtype=dtype))  # type: ignore[arg-type]
        return self.call(new_full, self.source, tuple(sizes), value, dtype)

    @property
    def source(self) -> fx.Node:
        """The graph's input; what is made at run time is made on its device."""
        return self._placeholders[0]

    # What is known of a value.

    def shape(self, value: Value) -> list[Any]:
        """Return the dimensions: numbers, and a :class:`Size` for each that depends on the batch."""
        if isinstance(value, fx.Node):
            return [self._dimension(value, axis) for axis in range(self.rank(value))]
        return list(value.tensor.shape if isinstance(value, Constant) else value.array.shape)

    def static_shape(self, value: Value) -> list[int | None]:
        """Return the dimensions, None for each that depends on the batch."""
        first, second = self.sample_shapes(value)
        return [one if one == two else None for one, two in zip(first, second, strict=True)]

    def sample_shapes(self, value: Value) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape at each of the two sample batches."""
        if isinstance(value, fx.Node):
            first, second = self._samples[value]
            return tuple(first.shape), tuple(second.shape)
        shape = tuple(value.tensor.shape if isinstance(value, Constant) else value.array.shape)
        return shape, shape

    def rank(self, value: Value) -> int:
        """Return the number of axes."""
        return len(self.sample_shapes(value)[0])

    def dtype(self, value: Value) -> torch.dtype:
        """Return the element type."""
        if isinstance(value, Sizes):
            return torch.int64
        dtype: torch.dtype = (
            value.tensor.dtype if isinstance(value, Constant) else self._samples[value][0].dtype
        )
        return dtype

    def is_weighted(self, value: Value) -> bool:
        """Whether a weight took part in computing a value; if not, it is the image, perhaps normalised."""
        return isinstance(value, fx.Node) and value in self._weighted

    def layer(self, value: Value) -> nn.Module | None:
        """Return the layer that computes a value, if one does."""
        if isinstance(value, fx.Node) and value.op == "call_module":
            return self._root.get_submodule(str(value.target))
        return None

    def finish(self, output: Any) -> fx.GraphModule:
        """Return the module that gives this output."""
        self._graph.output(self._place(map_aggregate(output, self._as_tensor)))
        module = fx.GraphModule(self._root, self._graph, class_name="ImportedModel")
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
        module.graph.lint()
        module.eval()
        return module

    def _compute(
        self, function: Callable[..., Any], arguments: Any, options: Any, *, trainable: bool = False
    ) -> Any:
        """Call a function on constants; what it makes of a weight is a weight of that name."""
        constants = [leaf for leaf in leaves((arguments, options)) if isinstance(leaf, Constant)]
        weights = [constant for constant in constants if constant.trainable]
        name = weights[0].name if len(weights) == 1 else ""
        with torch.no_grad():
            result = function(*eager(arguments), **eager(options))
        several = isinstance(result, (tuple, list))
        made = [
            Constant(part, trainable or bool(weights), name) for part in (result if several else [result])
        ]
        return tuple(made) if several else made[0]

    def _try(self, function: Callable[..., Any], arguments: Any, options: Any) -> Samples:
        with self._fake, torch.no_grad():
            first, second = (
                function(*self._sampled(arguments, which), **self._sampled(options, which))
                for which in (0, 1)
            )
        return first, second

    def _sampled(self, arguments: Any, which: Literal[0, 1]) -> Any:
        return map_aggregate(
            arguments, lambda leaf: self._samples[leaf][which] if isinstance(leaf, fx.Node) else leaf
        )

    def _add(self, kind: str, target: Any, arguments: Any, options: Any, samples: Samples) -> fx.Node:
        name = naming.value_name(self._current) if self._current is not None else None
        node = self._graph.create_node(kind, target, arguments, options, name=name)
        node.meta["onnx"] = self._current.name if self._current is not None else ""
        self._samples[node] = samples
        if any(parent in self._weighted for parent in node.all_input_nodes):
            self._weighted.add(node)
        return node

    def _dimension(self, node: fx.Node, axis: int) -> Number:
        if (node, axis) not in self._sizes:
            first, second = (int(sample.shape[axis]) for sample in self._samples[node])
            self._sizes[node, axis] = (
                first if first == second else self._read_size(node, axis, (first, second))
            )
        return self._sizes[node, axis]

    def _read_size(self, node: fx.Node, axis: int, samples: Samples) -> Size:
        with self._graph.inserting_after(self._placeholders[-1] if node.op == "placeholder" else node):
            size = self._graph.call_method("size", (node, axis))
        self._samples[size] = samples
        return Size(self.number, size, samples)

    def _layer_path(self, weight: str, bias: str) -> str:
        if self._current is None:
            return "layer"
        path = naming.module_path(self._current, weight, bias)
        return path if self._names.is_free(path) else naming.module_path(self._current)

    # Values as arguments of a node.

    def _place(self, arguments: Any) -> Any:
        return map_aggregate(arguments, self._place_leaf)

    def _place_leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Constant):
            return self._place_constant(leaf)
        if isinstance(leaf, Sizes):
            items = leaf.array.ravel().tolist()
            return items[0].node if leaf.array.ndim == 0 else self._stack(items, leaf.array.shape)
        return leaf.node if isinstance(leaf, Size) else leaf

    def _as_tensor(self, value: Any) -> Any:
        if not isinstance(value, Sizes):
            return value
        return self._stack(value.array.ravel().tolist(), value.array.shape)

    def _stack(self, items: list[Number], shape: tuple[int, ...]) -> fx.Node:
        node: fx.Node = self.call(stack_sizes, self.source, items, shape)
        return node

    def _place_constant(self, constant: Constant) -> fx.Node:
        if id(constant) not in self._placed:
            self._placed[id(constant)] = constant, self._add_attribute(constant)
        return self._placed[id(constant)][1]

    def _add_attribute(self, constant: Constant) -> fx.Node:
        """Keep a constant in the module: as a parameter if it is a weight, else as a buffer."""
        trainable = is_weight(constant)
        path = self._names.take(naming.clean(constant.name) or "constant")
        tensor = constant.tensor.detach().clone()
        shape = tuple(tensor.shape)
        if len(shape) == _UNMOVABLE_RANK:
            tensor = tensor.flatten(0, 1)
        attach(self._root, path, nn.Parameter(tensor) if trainable else tensor)
        with self._graph.inserting_after(self._placeholders[-1]):
            node = stored = self._graph.get_attr(path)
        if shape != tuple(tensor.shape):
            with self._graph.inserting_after(stored):
                node = self._graph.call_function(torch.reshape, (stored, shape))
        for made, value in ((stored, tensor), (node, tensor.reshape(shape))):
            self._samples[made] = (value, value)
            if trainable:
                self._weighted.add(made)
        return node
