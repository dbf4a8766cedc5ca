r"""Puts batch norm back where an exporter folded it into a convolution, and folds it again for export.

Exporters fold batch norm, in evaluation mode, into the convolution before it wherever there is one. A network
without it diverges at the learning rates that papers train at. Put back as an identity it changes no answer
and trains as before: the running statistics are those of clean images, the scale is the standard deviation
and the shift is the mean.

.. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta = x,
          \qquad \gamma := \sqrt{\sigma^2 + \epsilon}, \quad \beta := \mu
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from calibration.shapes import node_shapes

__all__ = ["BatchNormState", "batch_norm_state", "fold_batch_norm", "insert_batch_norm"]

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS: Final = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_MOVES: Final[frozenset[Any]] = frozenset(
    {torch.permute, torch.reshape, torch.flatten, torch.transpose, "permute", "flatten", "reshape", "view"}
)
"""What follows a convolution that cuts an image into tokens, and never had batch norm."""

_BATCH: Final = 128


@dataclass(frozen=True)
class BatchNormState:
    """What there is of batch norm in a network.

    Attributes:
        kept: Names of the batch-norm layers that are left.
        bare: Names of the convolutions over space that have a bias and no norm after them. A convolution
            before batch norm has no bias of its own, so these are where it was folded, or never was.
    """

    kept: tuple[str, ...]
    bare: tuple[str, ...]

    @property
    def verdict(self) -> Literal["kept", "partly folded", "folded or never there", "none"]:
        """One of four: whole, in part, gone (or never there), or a network without place for it."""
        if self.kept:
            return "partly folded" if self.bare else "kept"
        return "folded or never there" if self.bare else "none"


def batch_norm_state(
    module: fx.GraphModule, row: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> BatchNormState:
    """Tell which batch norms are left and which convolutions lost theirs.

    Convolutions that see a single pixel (as in squeeze and excitation), that cut the image into tokens, that
    have another norm, or that give the logits are not counted.

    Args:
        module: The network.
        row: Shape of one row of its input.
        dtype: The input's element type.
    """
    kept = [name for name, layer in module.named_modules() if isinstance(layer, _BATCH_NORMS)]
    shapes = node_shapes(module, row, dtype=dtype)
    bare = [str(node.target) for node in _bare(module, shapes)]
    return BatchNormState(tuple(kept), tuple(dict.fromkeys(bare)))


def insert_batch_norm(module: fx.GraphModule, images: Tensor) -> fx.GraphModule:
    """Return a copy with batch norm after every convolution that lost its own; its answers are the same.

    Args:
        module: The network; left as it is.
        images: Clean images, as the network takes them; some hundreds, for the statistics.

    Returns:
        The copy, in evaluation mode. Biases of those convolutions are gone into the norm.
    """
    grown = copy.deepcopy(module).eval()
    shapes = node_shapes(grown, images.shape[1:], dtype=images.dtype)
    statistics = _Statistics(grown, list(_bare(grown, shapes)))
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            statistics.run(images[start : start + _BATCH])
    for node in statistics.sums:
        _insert(grown, node, *statistics.of(node))
    grown.graph.lint()
    grown.recompile()
    return grown


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose batch norms are folded into the convolutions before them, where there is one.

    Args:
        module: The network; left as it is.

    Returns:
        The copy, in evaluation mode; its answers in that mode are the same.
    """
    folded = copy.deepcopy(module).eval()
    calls = _calls(folded)
    for node in list(folded.graph.nodes):
        parent = _only_parent(node)
        convolution, norm = _layer(folded, parent), _layer(folded, node)
        if parent is None or not isinstance(norm, _BATCH_NORMS) or not isinstance(convolution, _CONVOLUTIONS):
            continue
        if len(parent.users) == calls[str(parent.target)] == 1 and norm.running_mean is not None:
            _fold(cast(nn.Conv2d, convolution), cast(nn.BatchNorm2d, norm))
            node.replace_all_uses_with(parent)
            folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.graph.lint()
    folded.recompile()
    return folded


def _bare(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> Iterator[fx.Node]:
    """Yield the calls of convolutions that may have lost a batch norm."""
    last, calls = _last_weighted(module), _calls(module)
    for node in module.graph.nodes:
        layer = _layer(module, node)
        if not isinstance(layer, _CONVOLUTIONS) or node is last or calls[str(node.target)] > 1:
            continue
        if layer.bias is None or not layer.bias.any():  # exporters write zeros for none
            continue
        over_space = any(size > 1 for size in shapes[node][2:])
        if over_space and not any(_leads_elsewhere(module, user) for user in node.users):
            yield node


def _calls(module: fx.GraphModule) -> Counter[str]:
    """Count how often each layer is called; one convolution called twice cannot have two norms folded in."""
    return Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")


def _last_weighted(module: fx.GraphModule) -> fx.Node | None:
    weighted = [
        node
        for node in module.graph.nodes
        if (layer := _layer(module, node)) is not None and next(layer.parameters(), None) is not None
    ]
    return weighted[-1] if weighted else None


def _leads_elsewhere(module: fx.GraphModule, user: fx.Node) -> bool:
    layer = _layer(module, user)
    return isinstance(layer, _BATCH_NORMS + _OTHER_NORMS) or user.target in _MOVES


def _layer(module: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    if node is None or node.op != "call_module":
        return None
    return module.get_submodule(str(node.target))


def _only_parent(node: fx.Node) -> fx.Node | None:
    parents = node.all_input_nodes
    return parents[0] if len(parents) == 1 else None


class _Statistics(fx.Interpreter):
    """Runs a graph and sums up what some of its nodes give, channel by channel, in double precision."""

    def __init__(self, module: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(module)
        self.sums: dict[fx.Node, list[Tensor]] = {node: [] for node in nodes}
        self.counts: dict[fx.Node, int] = dict.fromkeys(nodes, 0)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        result = super().run_node(n)
        if n in self.sums:
            values = result.double().transpose(0, 1).flatten(1)
            parts = [values.sum(1), values.square().sum(1)]
            self.sums[n] = list(map(operator.add, self.sums[n], parts)) if self.sums[n] else parts
            self.counts[n] += values.shape[1]
        return result

    def of(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel."""
        mean, square = (total / self.counts[node] for total in self.sums[node])
        return mean.float(), (square - mean.square()).clamp(min=0.0).float()


def _insert(module: fx.GraphModule, node: fx.Node, mean: Tensor, variance: Tensor) -> None:
    convolution = cast(nn.Conv2d, module.get_submodule(str(node.target)))
    norm = cast(nn.BatchNorm2d, _BATCH_NORMS[convolution.weight.dim() - 3](len(mean), device=mean.device))
    norm.running_mean = mean - cast(Tensor, convolution.bias).detach()
    norm.running_var = variance
    norm.weight = nn.Parameter((variance + norm.eps).sqrt())
    norm.bias = nn.Parameter(mean.clone())
    convolution.bias = None
    path = _free_path(module, f"{node.target}_norm")
    module.add_submodule(path, norm.eval())
    with module.graph.inserting_after(node):
        call = module.graph.call_module(path, (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)


def _free_path(module: nn.Module, path: str) -> str:
    taken = dict(module.named_modules())
    while path in taken:
        path = f"{path}_"
    return path


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
