"""Small random networks of the families that classifiers are built from, and both of torch's ONNX exporters.

Most come from torchvision. Beside torch's CPU build its compiled part does not load, and it then fails to
import for two detection operators that it wants to describe; they are declared here, without code, so that it
imports. No classifier calls them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from calibration.nets.wide_resnet import wide_resnet

CLASSES = 4
EXPORTERS = ("dynamo", "torchscript")

_LIBRARIES: list[Any] = []
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def torchvision_models() -> ModuleType:
    """Import ``torchvision.models``, declaring the operators that its compiled part would bring."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define(f"nms{_BOXES}")
    library.define(f"qnms{_BOXES}")
    _LIBRARIES.append(library)
    return importlib.import_module("torchvision.models")


@dataclass(frozen=True)
class Family:
    make: Callable[[], nn.Module]
    side: int = 32


def _resnet() -> nn.Module:
    models = torchvision_models()
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def _vgg(*, batch_norm: bool) -> nn.Module:
    models = torchvision_models()
    net = models.VGG(models.vgg.make_layers([8, 8, "M", 16, "M", 32, "M"], batch_norm), num_classes=CLASSES)
    net.avgpool = nn.Identity()
    net.classifier[0] = nn.Linear(32 * 16, 64)
    net.classifier[3] = nn.Linear(64, 64)
    net.classifier[6] = nn.Linear(64, CLASSES)
    return net


def _mobilenet_v3() -> nn.Module:
    return torchvision_models().mobilenet_v3_small(num_classes=CLASSES, width_mult=0.25)


def _efficientnet() -> nn.Module:
    models = torchvision_models()
    settings, _ = models.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.5)
    return models.EfficientNet(settings, dropout=0.2, num_classes=CLASSES)


def _densenet() -> nn.Module:
    return torchvision_models().DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)


def _shufflenet() -> nn.Module:
    return torchvision_models().ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=CLASSES)


def _convnext() -> nn.Module:
    models = torchvision_models()
    blocks = [(16, 32, 1), (32, 64, 1), (64, None, 2)]
    return models.ConvNeXt([models.convnext.CNBlockConfig(*block) for block in blocks], num_classes=CLASSES)


def _vit() -> nn.Module:
    return torchvision_models().VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=CLASSES)


def _swin() -> nn.Module:
    return torchvision_models().SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, stochastic_depth_prob=0.0
    )


FAMILIES: dict[str, Family] = {
    "resnet": Family(_resnet),
    "preactivation_wide_resnet": Family(lambda: wide_resnet(16, 1, CLASSES)),
    "vgg": Family(lambda: _vgg(batch_norm=False)),
    "vgg_batch_norm": Family(lambda: _vgg(batch_norm=True)),
    "mobilenet_v3": Family(_mobilenet_v3, 64),
    "efficientnet": Family(_efficientnet, 64),
    "densenet": Family(_densenet, 64),
    "shufflenet": Family(_shufflenet, 64),
    "convnext": Family(_convnext, 64),
    "vit": Family(_vit),
    "swin": Family(_swin),
}


def lively(name: str) -> nn.Module:
    """Return a network of the family with random weights and statistics, whose logits are about 1 in size.

    As they are initialised some families answer with zeros, and would agree with anything.
    """
    generator = torch.Generator().manual_seed(0)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)  # the families draw from the global generator
    net = FAMILIES[name].make()
    torch.random.set_rng_state(state)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() > 1:
                fan = weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) * (1.6 / fan) ** 0.5)
            else:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        _measure_statistics(net, images(name, 32))
        last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight.div_(net.eval()(images(name, 32)).std())
    return net.eval()


def _measure_statistics(net: nn.Module, batch: torch.Tensor) -> None:
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    net.train()(batch)
    for norm in norms:
        norm.momentum = 0.1


def images(name: str, count: int) -> torch.Tensor:
    side = FAMILIES[name].side
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(count))


def exported(
    net: nn.Module, example: torch.Tensor, exporter: str, *, free: bool = True, opset: int | None = None
) -> onnx.ModelProto:
    """Export by ``dynamo`` or ``torchscript``, with a free batch axis or bound to the example's batch."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "opset_version": opset}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            axes: Any = ({0: torch.export.Dim("batch")},) if free else None
            options |= {"dynamo": True, "dynamic_shapes": axes, "verbose": False}
            return torch.onnx.export(net, (example,), **options).model_proto
        options["dynamic_axes"] = {"images": {0: "batch"}, "logits": {0: "batch"}} if free else None
        torch.onnx.export(net, (example,), buffer, dynamo=False, **options)
    return onnx.load_model_from_string(buffer.getvalue())


@cache
def folded_proto(name: str) -> onnx.ModelProto:
    """Return the family's lively network as the TorchScript exporter writes it; not to be changed."""
    return exported(lively(name), images(name, 2), "torchscript")


def lessons(name: str, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is the quarter that is bright, and their labels."""
    generator = np.random.default_rng(0)
    side = FAMILIES[name].side
    labels = generator.integers(0, CLASSES, count)
    pictures = generator.random((count, 3, side, side), dtype=np.float32) * 0.5
    half = side // 2
    for picture, label in zip(pictures, labels, strict=True):
        top, left = divmod(int(label), 2)
        picture[:, top * half : (top + 1) * half, left * half : (left + 1) * half] += 0.5
    return pictures, labels
