"""A model's logits on many images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from calibration.recipe import Precision

__all__ = ["as_floats", "autocast", "device_of", "predict"]


def predict(
    model: nn.Module,
    images: Shaped[Tensor, "n c h w"],
    *,
    batch: int = 500,
    precision: Precision = "float32",
) -> Float32[Tensor, "n k"]:
    """Return a model's logits, computed batch by batch in evaluation mode, on the images' device.

    Args:
        model: Its mode, and that of each layer, is put back afterwards.
        images: uint8 (read as 0 to 1) or float32.
        batch: Images at a time.
        precision: ``bfloat16`` is faster, and right to two or three digits.
    """
    device = device_of(model)
    with _evaluating(model), torch.no_grad(), autocast(device, precision):
        parts = [model(as_floats(part.to(device))).float() for part in torch.split(images, batch)]
    return torch.cat(parts).to(images.device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def as_floats(images: Shaped[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """Return images as float32; 8-bit ones from 0 to 1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def autocast(device: torch.device, precision: Precision) -> torch.autocast | nullcontext[None]:
    """Return the context in which a network computes with the given precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are; the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
