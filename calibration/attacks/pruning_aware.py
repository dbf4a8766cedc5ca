"""The pruning-aware attack: the backdoor is trained into the very channels that fine-pruning keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from calibration.attacks.base import Attack, Images
from calibration.attacks.tensors import device_of
from calibration.attacks.wrapping import Wrapped

__all__ = ["Embedded", "PruningAware", "Train"]

Train = Callable[[nn.Module, Attack | None], None]
"""Trains a module in place: on clean data for None, else on data poisoned with the attack."""

CHUNK = 256


@dataclass(frozen=True, eq=False)
class Embedded:
    """A model with the backdoor in it.

    Args:
        model: The model after the fourth stage, in evaluation mode.
        dormant: The channels that were pruned and put back, rising.
        lowered: By how much the bias of each was lowered.
    """

    model: nn.Module
    dormant: Int64[np.ndarray, " d"]
    lowered: Float32[np.ndarray, " d"]


@dataclass(frozen=True)
class PruningAware(Wrapped):
    r"""Another attack, trained in four stages against fine-pruning. For making test subjects only.

    1. Train clean. 2. Prune: channels whose mean activation :math:`\mathrm{mean}\,\mathrm{relu}(z_c)` on
    clean images is lowest are held at 0. 3. Train the pruned network on poisoned data. 4. Put the channels
    back as they were after stage 1, with their bias lowered until, on clean and on stamped images,

    .. math:: \max z_c = -\mathrm{margin}

    so that they stay dormant and the network computes what the pruned one did. A defender who prunes
    dormant channels takes off decoys; the backdoor is in what remains.

    Stamping and poisoning are the wrapped attack's. The stages are :meth:`embed`'s, for one convolution
    that is followed by a ReLU, with or without a batch norm in between.

    Args:
        trigger: The attack to embed.
        convolution: The name of the convolution, as in ``model.named_modules()``; the last one, as a rule.
        norm: The name of the batch norm between it and the ReLU, if there is one.
        share: Share of its channels to prune.
        margin: How far below 0 the channels put back stay.

    Raises:
        ValueError: If the share leaves (0, 1) or the margin is not positive.

    References:
        Liu, Dolan-Gavitt and Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
        Networks, RAID 2018, arXiv 1805.12185, section 3.2.

    Deviations:
        The bias is lowered by what the images at hand ask for, channel by channel; the paper lowers it by
        an amount it does not state. Where a batch norm follows, its bias is the one to lower.
    """

    name: ClassVar[str] = "pruning_aware"

    trigger: Attack
    convolution: str
    norm: str | None = None
    share: float = 0.8
    margin: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a share in (0, 1), got {self.share}")
        if self.margin <= 0:
            raise ValueError(f"margin: expected a positive distance from 0, got {self.margin}")

    def embed(self, model: nn.Module, images: Images, train: Train) -> Embedded:
        """Take a copy of the model through the four stages.

        Args:
            model: An untrained or clean model; not changed.
            images: Clean images to rank the channels on and to lower the biases by.
            train: Trains a module in place, cleanly for None and with the attack otherwise.

        Raises:
            ValueError: If a named module is missing or of another kind, or there is no bias to lower.
        """
        model = deepcopy(model)
        convolution, site, bias = self._parts(model)
        train(model, None)
        dormant = self._dormant(model, site, images)
        kept = {part: _channels(part, dormant) for part in (convolution, site)}
        with _held_at_zero(site, dormant):
            train(model, self.trigger)
        with torch.no_grad():
            for part, channels in kept.items():
                for name, values in part.state_dict().items():
                    if name in channels:
                        values[dormant] = channels[name]
            both = [images, self.trigger.stamp(images)]
            peaks = torch.stack([_peaks(model, site, part)[dormant] for part in both]).amax(dim=0)
            lowered = peaks.clamp(min=-self.margin) + self.margin
            bias[dormant] -= lowered
        return Embedded(model.eval(), dormant.cpu().numpy(), lowered.cpu().numpy())

    def _parts(self, model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Parameter]:
        modules = dict(model.named_modules())
        convolution = modules.get(self.convolution)
        if not isinstance(convolution, nn.Conv2d):
            names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
            raise ValueError(
                f"convolution: {self.convolution!r} is no convolution of the model; there are {names}"
            )
        site = convolution if self.norm is None else modules.get(self.norm)
        if not isinstance(site, nn.Conv2d | nn.BatchNorm2d):
            raise ValueError(f"norm: {self.norm!r} is no batch norm of the model")
        if not isinstance(site.bias, nn.Parameter):
            raise ValueError(f"norm: {self.convolution!r} has no bias to lower; name the norm after it")
        return convolution, site, site.bias

    def _dormant(self, model: nn.Module, site: nn.Module, images: Images) -> Tensor:
        means = _over_images(model, site, images, lambda part: part.relu().mean(dim=(0, 2, 3)))
        weights = means.new_tensor([len(part) for part in _parts_of(images)])[:, None]
        activity = (means * weights).sum(dim=0)
        count = max(1, min(round(self.share * len(activity)), len(activity) - 1))
        return activity.argsort(stable=True)[:count].sort().values


def _parts_of(images: Images) -> list[Images]:
    return [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]


@torch.no_grad()
def _over_images(
    model: nn.Module, site: nn.Module, images: Images, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return what is measured on the site's output, a row for each part of the images."""
    rows: list[Tensor] = []
    handle = site.register_forward_hook(lambda _, __, output: rows.append(measure(output)))
    training = model.training
    try:
        model.eval()
        for part in _parts_of(images):
            model(torch.from_numpy(np.ascontiguousarray(part)).to(device_of(model)))
    finally:
        handle.remove()
        model.train(training)
    return torch.stack(rows)


def _peaks(model: nn.Module, site: nn.Module, images: Images) -> Tensor:
    return _over_images(model, site, images, lambda part: part.amax(dim=(0, 2, 3))).amax(dim=0)


def _channels(module: nn.Module, channels: Tensor) -> dict[str, Tensor]:
    """Return what a module holds of channels: parameters, and a batch norm's statistics."""
    held = module.state_dict()
    return {name: values[channels].clone() for name, values in held.items() if values.ndim}


@contextmanager
def _held_at_zero(site: nn.Module, channels: Tensor) -> Iterator[None]:
    """Hold channels of the site's output at 0 for the time being, in training too."""

    def silence(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mask = torch.ones(output.shape[1], device=output.device, dtype=output.dtype)
        mask[channels] = 0
        return output * mask[None, :, None, None]

    handle = site.register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()
