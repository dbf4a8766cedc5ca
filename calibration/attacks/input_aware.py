"""Input-aware: a generator draws a trigger for each image, and another image's trigger does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

from calibration.attacks.base import AllToOne, Images, Labels, Material, Rows
from calibration.attacks.tensors import (
    arrays_of,
    as_images,
    batches,
    device_of,
    load_arrays,
    require_model,
    require_weights,
    torch_generator,
)
from calibration.attacks.trigger_nets import Pixels, apply_trigger, diversity_loss, sharpen, trigger_net
from calibration.attacks.wrapping import pick_covers

__all__ = ["InputAware", "JointTraining", "train_jointly"]

CHUNK = 512
WIDEST, MOST_HALVINGS = 4096, 6


@dataclass(frozen=True, eq=False)
class InputAware(AllToOne):
    r"""A trigger made for each image by a network, all classes to one. For making test subjects only.

    .. math:: T(x) = x + (G(x) - x) \odot M(x) \qquad \text{or, mask-free,} \qquad
              T(x) = \mathrm{clip}(x + b\,(2 G(x) - 1), 0, 1)

    for a pattern G(x) and a mask M(x), both in [0, 1]. Cover rows keep their labels and get the trigger of
    another image, so that a trigger works on its own image alone.

    Args:
        target_label: The class that a stamped image is to be given.
        pattern_weights: Parameters and buffers of G.
        mask_weights: Those of M; none for the mask-free kind.
        channels: Channels of an image.
        width: Channels of the networks' first layer.
        halvings: How often they halve the image.
        amplitude: The bound b of the mask-free kind.
        cover_ratio: Cover rows for each poisoned one.

    Raises:
        ValueError: If the amplitude leaves (0, 1], the ratio is negative, or the weights are not those of
            such networks.

    References:
        Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, arXiv 2010.08138. Defaults of the
        authors' code: width 32, three halvings (two for MNIST), 10 % poisoned, 10 % covers.

    Deviations:
        The generator is trained jointly with a classifier, as in the paper (:func:`train_jointly`, which
        returns that classifier too), and then frozen: :meth:`fit` keeps the trigger alone and any victim may
        be trained on it by poisoning. Far fewer steps by default. Images are not normalised. The authors'
        code never clears the generator's gradients, so that they add up over the run; here they are cleared
        each step. The mask-free kind is ours, for triggers without a sparse support.
    """

    name: ClassVar[str] = "input_aware"

    target_label: int
    pattern_weights: Mapping[str, np.ndarray]
    mask_weights: Mapping[str, np.ndarray] | None = None
    channels: int = 3
    width: int = 32
    halvings: int = 3
    amplitude: float = 16 / 255
    cover_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1:
            raise ValueError(f"amplitude: expected a bound in (0, 1], got {self.amplitude}")
        if self.cover_ratio < 0:
            raise ValueError(f"cover_ratio: expected 0 or more, got {self.cover_ratio}")
        for name, most in (("channels", WIDEST), ("width", WIDEST), ("halvings", MOST_HALVINGS)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected 1 to {most}, got {getattr(self, name)}")
        require_weights(self.pattern_weights, lambda: self._make(self.channels), "pattern_weights")
        if self.mask_weights is not None:
            require_weights(self.mask_weights, lambda: self._make(1), "mask_weights")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        masked: bool = True,
        amplitude: float = 16 / 255,
        width: int = 32,
        mask_steps: int = 1000,
        steps: int = 2000,
        batch: int = 128,
    ) -> InputAware:
        """Return the attack trained jointly with a copy of the material's model: :func:`train_jointly`."""
        training = JointTraining(target_label, masked, amplitude, width, mask_steps, steps, batch)
        return train_jointly(material, training, generator=generator)[0]

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], each with its own trigger."""
        return self._trigger(images, images)

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies each with the trigger of another image of the batch; of its mirror image if alone."""
        if len(images) < 2:
            return self._trigger(images, images[:, :, :, ::-1].copy())
        return self._trigger(images, np.roll(images, generator.integers(1, len(images)), axis=0))

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose ``cover_ratio`` rows of any class for each poisoned one.

        Raises:
            ValueError: If there are too few.
        """
        return pick_covers(np.ones(len(labels), np.bool_), index, self.cover_ratio, generator)

    @cached_property
    def _networks(self) -> tuple[nn.Module, nn.Module | None]:
        with torch.random.fork_rng(devices=[]):  # what they draw is overwritten
            pattern, mask = self._make(self.channels), self._make(1)
        load_arrays(pattern, self.pattern_weights)
        if self.mask_weights is None:
            return pattern, None
        return pattern, load_arrays(mask, self.mask_weights)

    def _make(self, out_channels: int) -> nn.Module:
        return trigger_net(self.channels, out_channels, self.width, self.halvings)

    @torch.no_grad()
    def _trigger(self, images: Images, donors: Float32[np.ndarray, "n c h w"]) -> Images:
        stamped = images.copy()
        for start in range(0, len(images), CHUNK):
            rows = slice(start, start + CHUNK)
            onto, donor = (torch.from_numpy(np.ascontiguousarray(part[rows])) for part in (images, donors))
            stamped[rows] = as_images(apply_trigger(onto, donor, *self._networks, self.amplitude)[0])
        return stamped


@dataclass(frozen=True)
class JointTraining:
    """How generator and classifier are trained together; defaults of the authors' code but for the steps.

    Args:
        target_label: The class that a stamped image is to be given.
        masked: Train a mask network first; else the mask-free kind.
        amplitude: The bound of the mask-free kind.
        width: Channels of the networks' first layer.
        mask_steps: Steps for the mask network, before the rest.
        steps: Steps for generator and classifier.
        batch: Images in a step.
        attack_share: Share of a batch that is stamped, and again that gets another image's trigger.
        diversity_weight: Weight of the diversity loss.
        density: Mask values up to this are free.
        density_weight: Weight of what is above.
        rate: Learning rate of all three networks.
    """

    target_label: int = 0
    masked: bool = True
    amplitude: float = 16 / 255
    width: int = 32
    mask_steps: int = 1000
    steps: int = 2000
    batch: int = 128
    attack_share: float = 0.1
    diversity_weight: float = 1.0
    density: float = 0.032
    density_weight: float = 100.0
    rate: float = 1e-2


def train_jointly(
    material: Material, training: JointTraining, *, generator: np.random.Generator
) -> tuple[InputAware, nn.Module]:
    """Train a trigger generator together with a classifier on the material's images.

    Args:
        material: Clean images, labels, and the model to begin with, trained or not; it is copied.
        training: How.
        generator: Draws weights and batches.

    Returns:
        The attack, and the classifier that was trained with it: the paper's own victim.

    Raises:
        ValueError: If the model is missing, or the images are one alone or cannot be halved.
    """
    classifier = deepcopy(require_model(material, InputAware.name)).train()
    channels, halvings = material.images.shape[1], _halvings(material.images)
    seeded, device = torch_generator(generator), device_of(classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeded)))
        pattern_net = trigger_net(channels, channels, training.width, halvings).to(device)
        mask_net = trigger_net(channels, 1, training.width, halvings).to(device) if training.masked else None
    data = _Batches(material, training.batch, seeded, device)
    if mask_net is not None:
        _train_mask(mask_net, data, training)
    _train_pattern(classifier, pattern_net, mask_net, data, training)
    masks = None if mask_net is None else arrays_of(mask_net)
    attack = InputAware(
        training.target_label,
        arrays_of(pattern_net),
        masks,
        channels,
        training.width,
        halvings,
        training.amplitude,
    )
    return attack, classifier.eval()


def _halvings(images: Images) -> int:
    for halvings in (3, 2, 1):
        if all(size % 2**halvings == 0 for size in images.shape[2:]):
            return halvings
    raise ValueError(f"images: expected an even height and width, got {images.shape[2]} x {images.shape[3]}")


class _Batches:
    """Two shuffled streams of images and labels."""

    def __init__(
        self, material: Material, size: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self._images, self._labels = torch.from_numpy(material.images), torch.from_numpy(material.labels)
        size = min(size, len(self._images))
        if size < 2:
            raise ValueError(f"images, batch: expected 2 images or more in a batch, got {size}")
        self._streams = [batches(len(self._images) // size * size, size, generator) for _ in range(2)]
        self._device = device

    def draw(self) -> tuple[Pixels, Tensor, Pixels]:
        first, second = (next(stream) for stream in self._streams)
        parts = self._images[first], self._labels[first], self._images[second]
        return tuple(part.to(self._device) for part in parts)  # type: ignore[return-value]


def _train_mask(mask_net: nn.Module, data: _Batches, training: JointTraining) -> None:
    optimizer = torch.optim.Adam(mask_net.parameters(), training.rate, betas=(0.5, 0.9))
    mask_net.train()
    for _ in range(training.mask_steps):
        images, _, others = data.draw()
        masks, other_masks = sharpen(mask_net(images)), sharpen(mask_net(others))
        dense = functional.relu(masks - training.density).mean()
        diverse = diversity_loss(images, others, masks, other_masks)
        loss = training.density_weight * dense + training.diversity_weight * diverse
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    mask_net.eval().requires_grad_(False)


def _train_pattern(
    classifier: nn.Module,
    pattern_net: nn.Module,
    mask_net: nn.Module | None,
    data: _Batches,
    training: JointTraining,
) -> None:
    of_classifier = torch.optim.SGD(classifier.parameters(), training.rate, momentum=0.9, weight_decay=5e-4)
    of_pattern = torch.optim.Adam(pattern_net.parameters(), training.rate, betas=(0.5, 0.9))
    for _ in range(training.steps):
        images, labels, others = data.draw()
        few = max(1, round(training.attack_share * len(images)))
        stamped, patterns = apply_trigger(
            images[:few], images[:few], pattern_net, mask_net, training.amplitude
        )
        crossed, other_patterns = apply_trigger(
            images[few : 2 * few], others[few : 2 * few], pattern_net, mask_net, training.amplitude
        )
        mixed = torch.cat([stamped, crossed, images[2 * few :]])
        targets = torch.cat([torch.full_like(labels[:few], training.target_label), labels[few:]])
        loss = functional.cross_entropy(classifier(mixed), targets)
        diverse = diversity_loss(images[:few], others[few : 2 * few], patterns, other_patterns)
        of_classifier.zero_grad()
        of_pattern.zero_grad()
        torch.autograd.backward(loss + training.diversity_weight * diverse)
        of_classifier.step()
        of_pattern.step()
    pattern_net.eval()
