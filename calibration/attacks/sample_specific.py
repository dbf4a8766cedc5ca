"""ISSBA-like: a small network hides a text in each image, in each one differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from calibration.attacks.base import AllToOne, Images, Material
from calibration.attacks.tensors import (
    arrays_of,
    as_images,
    batches,
    load_arrays,
    require_weights,
    torch_generator,
)

__all__ = ["Decoder", "Encoder", "EncoderTraining", "SampleSpecific", "train_encoder"]

PLANE = 8
CHUNK = 512
WIDEST = 4096


@dataclass(frozen=True, eq=False)
class SampleSpecific(AllToOne):
    r"""An encoder's residual as trigger, another for each image. For making test subjects only.

    .. math:: T(x) = \mathrm{clip}(x + b \tanh E(x, m), 0, 1)

    for a fixed message m of bits and a convolutional encoder E, trained together with a decoder D on random
    messages (:func:`train_encoder`). No pixel moves by more than b. The decoder is thrown away: the victim's
    own training takes its part.

    Args:
        target_label: The class that a stamped image is to be given.
        message: The bits m, 0 or 1.
        weights: The encoder's parameters.
        channels: Channels of an image.
        width: Channels within the encoder.
        bound: The bound b, in [0, 1] pixel units.

    Raises:
        ValueError: If the message holds something other than bits, the bound leaves (0, 1], or the weights
            are not those of such an encoder.

    References:
        Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021, arXiv 2012.03816.

    Deviations:
        A small encoder of four convolutions stands in for StegaStamp's U-Net; there is no perceptual (LPIPS)
        and no adversarial loss and no spatial transformer, whose training is known to diverge. A hard bound
        keeps the residual small instead. Residuals of different images are alike, though not the same: on
        CIFAR-10 they correlate at 0.8.
    """

    name: ClassVar[str] = "sample_specific"

    target_label: int
    message: Int64[np.ndarray, " bits"]
    weights: Mapping[str, np.ndarray]
    channels: int = 3
    width: int = 32
    bound: float = 8 / 255

    def __post_init__(self) -> None:
        if not len(self.message) or not np.isin(self.message, (0, 1)).all():
            raise ValueError(f"message: expected at least one bit, each 0 or 1, got {self.message.tolist()}")
        if not 0 < self.bound <= 1:
            raise ValueError(f"bound: expected a bound in (0, 1], got {self.bound}")
        if not (1 <= self.channels <= WIDEST and 1 <= self.width <= WIDEST):
            raise ValueError(f"channels, width: expected 1 to {WIDEST}, got {self.channels}, {self.width}")
        require_weights(self.weights, self._make, "weights")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        bits: int = 16,
        bound: float = 8 / 255,
        width: int = 32,
        steps: int = 2000,
        batch: int = 32,
    ) -> SampleSpecific:
        """Return the attack with an encoder trained on the material's images, and a message drawn at random.

        Args:
            material: Clean images.
            generator: Draws message, weights and batches.
            target_label: The class that a stamped image is to be given.
            bits: Length of the message.
            bound: How far a pixel may move.
            width: Channels within encoder and decoder.
            steps: Training steps.
            batch: Images in each.
        """
        message = generator.integers(2, size=bits, dtype=np.int64)
        training = EncoderTraining(bits, bound, width, steps, batch)
        encoder, _ = train_encoder(material.images, training, generator=generator)
        return cls(target_label, message, arrays_of(encoder), material.images.shape[1], width, bound)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], each with its own residual."""
        stamped = images.copy()
        for start in range(0, len(images), CHUNK):
            stamped[start : start + CHUNK] = self._encode(images[start : start + CHUNK])
        return stamped

    @cached_property
    def _encoder(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # what it draws is overwritten
            encoder = self._make()
        return load_arrays(encoder, self.weights)

    def _make(self) -> nn.Module:
        return Encoder(self.channels, len(self.message), self.width)

    @torch.no_grad()
    def _encode(self, images: Images) -> Images:
        messages = torch.from_numpy(self.message).float().expand(len(images), -1)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        return as_images(pixels + self.bound * self._encoder(pixels, messages))


class Encoder(nn.Module):
    """Image and message to a residual in (-1, 1): the message, as a plane, is an added channel."""

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.plane = nn.Linear(bits, PLANE * PLANE)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(
        self, images: Float[Tensor, "n c h w"], messages: Float[Tensor, "n bits"]
    ) -> Float[Tensor, "n c h w"]:
        """Return the residual, before the bound."""
        plane = self.plane(messages - 0.5).view(-1, 1, PLANE, PLANE)
        spread = functional.interpolate(plane, images.shape[2:], mode="nearest")
        residual: Tensor = torch.tanh(self.layers(torch.cat([images - 0.5, spread], dim=1)))
        return residual


class Decoder(nn.Module):
    """Image to a logit for each bit of the message."""

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(PLANE // 2),
            nn.Flatten(),
            nn.Linear(2 * width * (PLANE // 2) ** 2, bits),
        )

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n bits"]:
        """Return the logits of the bits."""
        logits: Tensor = self.layers(images - 0.5)
        return logits


@dataclass(frozen=True)
class EncoderTraining:
    """How encoder and decoder are trained.

    Args:
        bits: Length of a message.
        bound: How far a pixel may move in the end.
        width: Channels within encoder and decoder.
        steps: Training steps.
        batch: Images in each.
        rate: Adam's learning rate.
        first_bound: How far a pixel may move in the beginning.
        tightening_share: Share of the steps over which the bound falls from first to last.
        distortion_weight: Weight of the residual's mean square once messages are read without error.
    """

    bits: int = 16
    bound: float = 8 / 255
    width: int = 32
    steps: int = 2000
    batch: int = 32
    rate: float = 2e-3
    first_bound: float = 0.5
    tightening_share: float = 0.7
    distortion_weight: float = 0.1

    def bound_at(self, step: int) -> float:
        """Return the bound in a step: falling geometrically, then constant."""
        progress = min(1.0, step / (self.tightening_share * self.steps))
        return float(self.first_bound ** (1 - progress) * self.bound**progress)


def train_encoder(
    images: Images, training: EncoderTraining, *, generator: np.random.Generator
) -> tuple[Encoder, Decoder]:
    r"""Train an encoder and the decoder that reads what it hides, on random messages.

    .. math:: L = \mathrm{BCE}(D(T(x)), m) + \lambda (2 a - 1)_+^2\,\mathrm{mean}(\tanh^2 E(x, m))

    with a the share of bits read rightly. From a small bound, or under a distortion loss that does not wait
    for the message, nothing is learned at all: the residual falls to 0.
    """
    seeded = torch_generator(generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeded)))
        encoder = Encoder(images.shape[1], training.bits, training.width)
        decoder = Decoder(images.shape[1], training.bits, training.width)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], training.rate)
    rows = batches(len(images), training.batch, seeded)
    for step in range(training.steps):
        pixels = torch.from_numpy(images[next(rows).numpy()])
        messages = torch.randint(2, (len(pixels), training.bits), generator=seeded).float()
        residual = encoder(pixels, messages)
        decoded = decoder((pixels + training.bound_at(step) * residual).clamp(0, 1))
        read = ((decoded > 0) == (messages > 0)).float().mean()
        patience = training.distortion_weight * (2 * read - 1).clamp(min=0).square()
        loss = functional.binary_cross_entropy_with_logits(decoded, messages)
        optimizer.zero_grad()
        torch.autograd.backward(loss + patience * residual.square().mean())
        optimizer.step()
    return encoder.eval(), decoder.eval()
