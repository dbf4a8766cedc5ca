"""A model that was taken in, as the one shape that all repairs work on, and the way back.

Whatever its file says, the network on the workbench takes float32 images, channels first, and gives logits;
convolutions whose batch norm an exporter folded, or that never had one, have one behind them, so that the
learning rates of papers do not tear the network apart. On the way back the repaired file takes and gives what
the old one did. Where norms were put back, *every* batch norm behind a convolution is folded into it: of a
network that an exporter had folded in part, those too that its file had kept. It answers the same without.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float32
from torch import Tensor, fx, nn

from calibration.batch_norm import batch_norm_state, fold_batch_norm, insert_batch_norm
from calibration.trainable import TrainableModel

__all__ = ["Workable", "make_workable"]

TURN: Final = "guard_face_turn"
LOGARITHM: Final = "guard_face_logarithm"
_SMALLEST: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Workable:
    """A network to be repaired.

    Attributes:
        module: Gives logits, float32 (n, k), of images, float32 (n, c, h, w), in the range that the model
            takes. In evaluation mode, every weight asking for gradients.
        source: What it was made of.
        shape: Channels, height and width.
        norms: Batch norms that were put back.
    """

    module: fx.GraphModule
    source: TrainableModel
    shape: tuple[int, int, int]
    norms: int

    def restored(self, repaired: fx.GraphModule) -> fx.GraphModule:
        """Return a copy of a repaired network with its source's own layout and output.

        Where norms were put back, all behind convolutions are folded, the source's own too; else none is.

        Args:
            repaired: A copy of :attr:`module`, of other weights.
        """
        plain = fold_batch_norm(repaired) if self.norms else copy.deepcopy(repaired).eval()
        for name in (TURN, LOGARITHM):
            _remove(plain, name)
        plain.graph.eliminate_dead_code()
        plain.recompile()
        return plain


def make_workable(
    model: TrainableModel, images: Float32[Tensor, "n c h w"], *, probabilities: bool = False
) -> Workable:
    """Return a network that repairs can work on; the model is left as it is.

    Args:
        model: As it was taken in.
        images: Clean images, for the statistics of batch norms that are put back; none puts none back.
        probabilities: Whether the model gives probabilities; their logarithms are logits.
    """
    module = copy.deepcopy(model.module).eval()
    if model.signature.layout == "NHWC":
        _turn(module)
    if probabilities:
        _take_logarithm(module)
    shape = _channels_first(model)
    bare = len(batch_norm_state(module, shape).bare) if len(images) else 0
    if bare:
        module = insert_batch_norm(module, images)
    module.requires_grad_(True)
    return Workable(module, model, shape, bare)


def _channels_first(model: TrainableModel) -> tuple[int, int, int]:
    first, second, third = model.signature.shape
    return (first, second, third) if model.signature.layout == "NCHW" else (third, first, second)


def _turn(module: fx.GraphModule) -> None:
    """Let the network take channels first."""
    entry = next(node for node in module.graph.nodes if node.op == "placeholder")
    with module.graph.inserting_after(entry):
        turn = module.graph.create_node("call_function", torch.permute, (entry, (0, 2, 3, 1)), name=TURN)
    entry.replace_all_uses_with(turn, delete_user_cb=lambda user: user is not turn)
    module.recompile()


def _take_logarithm(module: fx.GraphModule) -> None:
    """Let the network give logarithms of its probabilities.

    Where these come straight from a softmax, it is one with the logarithm, and nothing is lost however sure
    the network is; else what is too small for a number learns no more.
    """
    end = next(node for node in module.graph.nodes if node.op == "output")
    answer = end.args[0]
    axis = _softmax_axis(module, answer)
    with module.graph.inserting_before(end):
        if axis is not None:
            given = answer.all_input_nodes[0]
            logarithm = module.graph.create_node(
                "call_function", torch.log_softmax, (given, axis), name=LOGARITHM
            )
            end.args = (logarithm,)
            module.graph.erase_node(answer)
            module.delete_all_unused_submodules()
            module.recompile()
            return
        raised = module.graph.create_node(
            "call_function", torch.clamp_min, (answer, _SMALLEST), name=f"{LOGARITHM}_raised"
        )
        logarithm = module.graph.create_node("call_function", torch.log, (raised,), name=LOGARITHM)
    end.args = (logarithm,)
    module.recompile()


def _softmax_axis(module: fx.GraphModule, node: fx.Node) -> int | None:
    """Return the axis of a softmax that nothing else takes; None of any other node."""
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    only = len(node.users) == 1
    return layer.dim if only and isinstance(layer, nn.Softmax) and layer.dim in {1, -1} else None


def _remove(module: fx.GraphModule, name: str) -> None:
    """Take out a node that was put in; what it took goes where it went."""
    for node in module.graph.nodes:
        if node.name == name:
            before = node.all_input_nodes[0]
            if node.target is torch.log_softmax:
                node.target = torch.softmax
                return
            if name == LOGARITHM:
                before = before.all_input_nodes[0]
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)
            return
