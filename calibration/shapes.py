"""Shapes of everything a graph module computes, found without computing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from calibration.onnx_import.functions import new_full, new_range, stack_sizes

__all__ = ["SAMPLE_BATCH", "carrying", "node_shapes"]

SAMPLE_BATCH: Final = 11
"""Batch size that shapes are found for; no dimension of a model is likely to equal it."""

_MADE_FROM_SIZES: Final = frozenset({new_full, new_range, stack_sizes})
"""Functions that take the image for its device only."""


def node_shapes(
    module: fx.GraphModule, row: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every tensor in a graph, in the graph's order.

    Args:
        module: The network.
        row: Shape of one row of its input, without the batch axis.
        dtype: The input's element type.

    Returns:
        The shapes at a batch of :data:`SAMPLE_BATCH`; nodes that give no tensor are left out.
    """
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        images = torch.empty((SAMPLE_BATCH, *row), dtype=dtype, device=device)
        recorder = _Recorder(module)
        recorder.run(images)
    return recorder.shapes


class _Recorder(fx.Interpreter):
    """Runs a graph and notes shapes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def carrying(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> set[fx.Node]:
    """Return the nodes that carry the image on: tensors computed from it, not from its shape alone."""
    carriers: set[fx.Node] = set()
    for node in module.graph.nodes:
        from_image = any(parent in carriers for parent in node.all_input_nodes)
        if node.op == "placeholder" or (
            node in shapes and from_image and node.target not in _MADE_FROM_SIZES
        ):
            carriers.add(node)
    return carriers
