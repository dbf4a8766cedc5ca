"""Normalisations, each as torch's layer for it, with its scale and shift to train."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import lp_normalize, mean_variance_normalize
from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Constant

__all__ = ["CONVERTERS"]

_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _only_first_output(op: Op) -> None:
    if any(op.used[1:]):
        op.refuse("gives more than its first output, and only the first is known")


def _affine(layer: nn.Module, scale: Tensor, shift: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(scale.detach().clone())
    if shift is not None:
        layer.bias = nn.Parameter(shift.detach().clone())
    return layer


def _convert_batch_norm(builder: GraphBuilder, op: Op) -> Any:
    """Batch norm whose running statistics go on being updated in training mode."""
    if op.attribute("training_mode", 0):
        op.refuse("is in training mode; export the model in evaluation mode, model.eval()")
    _only_first_output(op)
    scale, shift, mean, variance = (op.constant(index) for index in (1, 2, 3, 4))
    layer = _BATCH_NORMS[max(builder.rank(op.input(0)), 2) - 2](
        scale.tensor.numel(),
        eps=op.attribute("epsilon", 1e-5),
        momentum=round(1.0 - op.attribute("momentum", 0.9), 7),
        device="meta",
    )
    _affine(layer, scale.tensor, shift.tensor)
    layer.running_mean, layer.running_var = mean.tensor.detach().clone(), variance.tensor.detach().clone()
    layer.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    return builder.module(layer, op.input(0), weight=scale.name, bias=shift.name)


def _convert_layer_norm(builder: GraphBuilder, op: Op) -> Any:
    """Layer norm over the last axes; as a function where its scale is no constant of their shape."""
    _only_first_output(op)
    shape = builder.static_shape(op.input(0))
    kept = shape[op.attribute("axis", -1) % len(shape) :]
    scale, shift, epsilon = op.input(1), op.optional(2), op.attribute("epsilon", 1e-5)
    if None in kept:
        op.refuse("normalises over an axis whose length the graph leaves open")
    sizes = [size for size in kept if size is not None]
    fits = [
        isinstance(part, Constant) and list(part.tensor.shape) == sizes for part in (scale, shift) if part
    ]
    if all(fits) and isinstance(scale, Constant):
        layer = nn.LayerNorm(sizes, eps=epsilon, bias=shift is not None, device="meta")
        tensor = shift.tensor if isinstance(shift, Constant) else None
        _affine(layer, scale.tensor, tensor)
        return builder.module(layer, op.input(0), weight=scale.name)
    normal = builder.call(functional.layer_norm, op.input(0), sizes, eps=epsilon)
    scaled = builder.call(torch.mul, normal, scale)
    return scaled if shift is None else builder.call(torch.add, scaled, shift)


def _convert_rms_norm(builder: GraphBuilder, op: Op) -> Any:
    """Division by the root mean square over the last axes."""
    shape = builder.static_shape(op.input(0))
    sizes = [size for size in shape[op.attribute("axis", -1) % len(shape) :] if size is not None]
    scale, epsilon = op.constant(1), op.attribute("epsilon", 1e-5)
    layer = nn.RMSNorm(sizes, eps=epsilon, device="meta")
    return builder.module(_affine(layer, scale.tensor.expand(sizes), None), op.input(0), weight=scale.name)


def _convert_group_norm(builder: GraphBuilder, op: Op) -> Any:
    """Group norm; opset 18 has one scale a group, later ones have one a channel."""
    channels = builder.static_shape(op.input(0))[1]
    if channels is None:
        op.refuse("does not say how many channels come in")
    groups, scale, shift = op.attributes["num_groups"], op.constant(1), op.constant(2)
    repeat = channels // scale.tensor.numel()
    layer = nn.GroupNorm(groups, channels, eps=op.attribute("epsilon", 1e-5), device="meta")
    _affine(layer, scale.tensor.repeat_interleave(repeat), shift.tensor.repeat_interleave(repeat))
    return builder.module(layer, op.input(0), weight=scale.name)


def _convert_instance_norm(builder: GraphBuilder, op: Op) -> Any:
    """Instance norm, by the statistics of each image."""
    rank = builder.rank(op.input(0)) - 2
    scale, shift = op.constant(1), op.constant(2)
    if rank not in {1, 2, 3}:
        op.refuse(f"has {rank} axes of space, and only 1 to 3 are known")
    layer = _INSTANCE_NORMS[rank - 1](
        scale.tensor.numel(), eps=op.attribute("epsilon", 1e-5), affine=True, device="meta"
    )
    return builder.module(_affine(layer, scale.tensor, shift.tensor), op.input(0), weight=scale.name)


def _convert_lrn(builder: GraphBuilder, op: Op) -> Any:
    """Local response norm across channels."""
    size = op.attributes["size"]
    if size % 2 == 0:
        op.refuse("has a window of even size, which lies off its centre; only odd sizes are known")
    constants = (op.attribute("alpha", 1e-4), op.attribute("beta", 0.75), op.attribute("bias", 1.0))
    return builder.module(nn.LocalResponseNorm(size, *constants), op.input(0))


def _convert_lp_normalization(builder: GraphBuilder, op: Op) -> Any:
    """Division by the norm along an axis."""
    return builder.call(lp_normalize, op.input(0), op.attribute("p", 2), op.attribute("axis", -1))


def _convert_mean_variance(builder: GraphBuilder, op: Op) -> Any:
    """Centring and scaling by the statistics over given axes."""
    return builder.call(mean_variance_normalize, op.input(0), op.attribute("axes", [0, 2, 3]))


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "BatchNormalization": _convert_batch_norm,
        "GroupNormalization": _convert_group_norm,
        "InstanceNormalization": _convert_instance_norm,
        "LRN": _convert_lrn,
        "LayerNormalization": _convert_layer_norm,
        "LpNormalization": _convert_lp_normalization,
        "MeanVarianceNormalization": _convert_mean_variance,
        "RMSNormalization": _convert_rms_norm,
    }
)
"""Operator, and what it becomes."""
