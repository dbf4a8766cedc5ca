"""Activations, each as torch's module for it where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.functions import hard_sigmoid, shrink, softmax_flattened
from calibration.onnx_import.op import Op
from calibration.onnx_import.values import Constant

__all__ = ["CONVERTERS"]

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _module(make: Callable[[Op], nn.Module]) -> Converter:
    return lambda builder, op: builder.module(make(op), op.input(0))


def _convert_prelu(builder: GraphBuilder, op: Op) -> Any:
    """Slope for negative values: one for all or one a channel as a layer, any other shape as arithmetic."""
    slope = op.input(1)
    if isinstance(slope, Constant) and _is_channelwise(slope.tensor, builder.rank(op.input(0))):
        layer = nn.PReLU(slope.tensor.numel(), device="meta")
        layer.weight = nn.Parameter(slope.tensor.reshape(-1).clone())
        return builder.module(layer, op.input(0), weight=slope.name)
    positive = builder.call(torch.clamp, op.input(0), min=0)
    negative = builder.call(torch.clamp, op.input(0), max=0)
    return builder.call(torch.add, positive, builder.call(torch.mul, slope, negative))


def _is_channelwise(slope: torch.Tensor, rank: int) -> bool:
    along_channels = slope.dim() == rank - 1 or (slope.dim() == rank and slope.shape[0] == 1)
    channel = slope.dim() - rank + 1
    return slope.numel() == 1 or (along_channels and slope.shape[channel] == slope.numel())


def _convert_selu(builder: GraphBuilder, op: Op) -> Any:
    """Scaled ELU; other constants than the paper's by an ELU and a factor."""
    alpha, gamma = op.attribute("alpha", _SELU_ALPHA), op.attribute("gamma", _SELU_GAMMA)
    if abs(alpha - _SELU_ALPHA) < 1e-6 and abs(gamma - _SELU_GAMMA) < 1e-6:
        return builder.module(nn.SELU(), op.input(0))
    return builder.call(torch.mul, builder.module(nn.ELU(alpha), op.input(0)), gamma)


def _convert_hard_sigmoid(builder: GraphBuilder, op: Op) -> Any:
    """Hold a straight line to [0, 1]; torch's layer has slope 1/6."""
    slope, offset = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    if abs(slope - 1 / 6) < 1e-6 and offset == 0.5:
        return builder.module(nn.Hardsigmoid(), op.input(0))
    return builder.call(hard_sigmoid, op.input(0), slope, offset)


def _convert_swish(builder: GraphBuilder, op: Op) -> Any:
    """Multiply by its own sigmoid."""
    slope = op.attribute("alpha", 1.0)
    if slope == 1.0:
        return builder.module(nn.SiLU(), op.input(0))
    gate = builder.call(torch.sigmoid, builder.call(torch.mul, op.input(0), slope))
    return builder.call(torch.mul, op.input(0), gate)


def _convert_clip(builder: GraphBuilder, op: Op) -> Any:
    """Hold values between two bounds, each of which may be missing."""
    value, low, high = op.input(0), _bound(op, "min", 1), _bound(op, "max", 2)
    real = isinstance(low, float) and isinstance(high, float)
    if builder.dtype(value).is_floating_point and real and low < high:
        return builder.module(nn.ReLU6() if (low, high) == (0.0, 6.0) else nn.Hardtanh(low, high), value)
    if low is not None:
        value = builder.call(torch.clamp, value, min=low)
    return value if high is None else builder.call(torch.clamp, value, max=high)


def _bound(op: Op, name: str, index: int) -> Any:
    """Return a bound as a number where it is known."""
    given = op.attributes.get(name, op.optional(index))
    return given.tensor.item() if isinstance(given, Constant) else given


def _softmax(*, log: bool) -> Converter:
    """Softmax along an axis; before opset 13, over all axes from one on together."""

    def convert(builder: GraphBuilder, op: Op) -> Any:
        value = op.input(0)
        rank = builder.rank(value)
        if op.opset >= 13:
            axis = op.attribute("axis", -1) % rank
        else:
            axis = op.attribute("axis", 1) % rank
            if axis != rank - 1:
                return builder.call(softmax_flattened, value, axis, log=log)
        axis = axis - rank if axis == rank - 1 else axis
        return builder.module(nn.LogSoftmax(axis) if log else nn.Softmax(axis), value)

    return convert


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {
        "Celu": _module(lambda op: nn.CELU(op.attribute("alpha", 1.0))),
        "Clip": _convert_clip,
        "Elu": _module(lambda op: nn.ELU(op.attribute("alpha", 1.0))),
        "Gelu": _module(lambda op: nn.GELU(op.attribute("approximate", "none"))),
        "HardSigmoid": _convert_hard_sigmoid,
        "HardSwish": _module(lambda op: nn.Hardswish()),
        "LeakyRelu": _module(lambda op: nn.LeakyReLU(op.attribute("alpha", 0.01))),
        "LogSoftmax": _softmax(log=True),
        "Mish": _module(lambda op: nn.Mish()),
        "PRelu": _convert_prelu,
        "Relu": _module(lambda op: nn.ReLU()),
        "Selu": _convert_selu,
        "Shrink": lambda builder, op: builder.call(
            shrink, op.input(0), op.attribute("bias", 0.0), op.attribute("lambd", 0.5)
        ),
        "Sigmoid": _module(lambda op: nn.Sigmoid()),
        "Softmax": _softmax(log=False),
        "Softplus": _module(lambda op: nn.Softplus()),
        "Softsign": _module(lambda op: nn.Softsign()),
        "Swish": _convert_swish,
        "Tanh": _module(lambda op: nn.Tanh()),
        "ThresholdedRelu": _module(lambda op: nn.Threshold(op.attribute("alpha", 1.0), 0.0)),
    }
)
"""Operator, and what it becomes."""
