"""Makes images from the model itself, where there are no clean ones to scan with.

Random pixels are moved until the model is sure of a class, all classes alike, while the images stay smooth
and small and what goes into the model's batch norms has the mean and variance that training left there.

A trigger is a short way to a backdoor's target, so it could get into these images. It does no harm there:

- Each image is for one class. A trigger can get into the target's images alone, and a search for triggers
  uses images of the other classes; there a trigger would lead away from what is asked for.
- Every step moves the images by some pixels and mirrors half of the batches, so that what works in one place
  only is no way that lasts.
- Smoothness is against it, and many pixels that each do a little are found before few that do much.

On a CIFAR-10 network with a patch in a corner none of the 5 images of the target had the patch there, or
lost its class as the corner was overwritten, with or without those moves. The true trigger turned 45 of 45
images of the other classes; a network that never saw these images, nor the backdoor, gave 49 of 50 or all of
them the class they were made for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from calibration.attacks.tensors import frozen
from calibration.errors import DataError, OptionError
from calibration.prediction import device_of
from calibration.scan.base import Arrays, Bench, Executor, Labelled, Unit
from calibration.scan.executor import LocalExecutor, gather

__all__ = ["Generation", "ImageBatch", "generate_images", "norm_distance", "variation"]

_BATCH_NORMS: Final = (nn.BatchNorm2d,)
_BETAS: Final = (0.5, 0.9)


@dataclass(frozen=True)
class Generation:
    r"""How images are made: what is minimised, and for how long.

    .. math:: \mathrm{CE}(F(x), y) + w_s \sum_l \bigl(\|\mu_l(x) - \mu_l\|_2
              + \|\sigma_l^2(x) - \sigma_l^2\|_2\bigr) + w_v \mathrm{TV}(x) + w_2 \|x\|^2

    with batch mean and variance at each batch norm l against its running ones. Images count from 0 to 1 in
    the priors, whatever range the model takes, and :math:`\|x\|^2` is from the middle.

    Args:
        steps: Steps of Adam for a batch.
        batch: Images made together; all classes in equal shares.
        rate: Adam's, in shares of the value range.
        statistics: w_s; nothing where the model has no batch norm left.
        smoothness: w_v.
        size: w_2.
        jitter: Pixels that a batch is moved by at most, another way each step.
        flip: Whether half of the batches are mirrored.
        rounds: How often batches are made, if the model does not give enough images the class they are for.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020,
        arXiv 1912.08795, eq. 2 to 4.

    Deviations:
        Images are held within the model's value range. Total variation and size are means over a batch's
        numbers, so that weights mean the same for any size of batch and image. Fewer steps. No competition
        with a student, which we do not have. Images that the model does not give their class are left out.
    """

    steps: int = 200
    batch: int = 100
    rate: float = 0.05
    statistics: float = 1.0
    smoothness: float = 1.0
    size: float = 0.1
    jitter: int = 2
    flip: bool = True
    rounds: int = 2

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "batch": 2,
            "rounds": 1,
            "jitter": 0,
            "statistics": 0,
            "smoothness": 0,
            "size": 0,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise OptionError(f"{name}: expected {value} or more, got {getattr(self, name)}")
        if self.rate <= 0:
            raise OptionError(f"rate: expected above 0, got {self.rate}")


@dataclass(frozen=True)
class ImageBatch(Unit):
    """Makes one batch of images; needs of the bench the model, the classes and the value range.

    Attributes:
        shape: Channels, height and width of an image.
        number: Which batch it is; the classes go round from one to the next.
        options: How.
        seed: Of what is drawn.
    """

    shape: tuple[int, int, int]
    number: int
    options: Generation
    seed: int

    @property
    def key(self) -> str:
        """All of it."""
        fields = (self.shape, self.number, astuple(self.options), self.seed)
        return f"generated-{self.number}-{hashlib.sha256(repr(fields).encode()).hexdigest()[:16]}"

    @property
    def weight(self) -> int:
        """Images through the model."""
        return (2 * self.options.steps + 1) * self.options.batch

    def run(self, bench: Bench) -> Arrays:
        """Return images as the model takes them, their labels, and the model's confidence in those."""
        start, random = self.number * self.options.batch, self._random()
        labels = torch.arange(start, start + self.options.batch) % bench.classes
        where = device_of(bench.model)
        low, span = (bound.to(where)[:, None, None] for bound in (bench.low, bench.high - bench.low))
        shares = 0.5 + 0.2 * torch.randn((len(labels), *self.shape), generator=random)
        shares = shares.clamp(0, 1).to(where).requires_grad_()
        self._improve(bench.model, shares, labels.to(where), low, span, random)
        with torch.no_grad():
            images = low + shares * span
            told = bench.model(images).softmax(dim=1).cpu()
        return {
            "images": images.detach().cpu().numpy(),
            "labels": labels.numpy(),
            "predicted": told.argmax(dim=1).numpy(),
            "confidence": told[torch.arange(len(labels)), labels].numpy(),
        }

    def _improve(
        self,
        model: nn.Module,
        shares: Tensor,
        labels: Tensor,
        low: Tensor,
        span: Tensor,
        random: torch.Generator,
    ) -> None:
        options, optimiser = self.options, torch.optim.Adam([shares], self.options.rate, betas=_BETAS)
        with _norm_inputs(model) as seen:
            for _ in range(options.steps):
                seen.clear()
                logits = model(low + self._moved(shares, random) * span)
                loss = functional.cross_entropy(logits, labels)
                for norm, features in seen:
                    loss = loss + options.statistics * norm_distance(norm, features)
                loss = loss + options.smoothness * variation(shares)
                loss = loss + options.size * (shares - 0.5).square().mean()
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                with torch.no_grad():
                    shares.clamp_(0, 1)

    def _moved(self, shares: Tensor, random: torch.Generator) -> Tensor:
        reach = self.options.jitter
        down, right = torch.randint(-reach, reach + 1, (2,), generator=random).tolist()
        moved = torch.roll(shares, (down, right), dims=(2, 3))
        mirrored = bool(torch.rand((), generator=random) < 0.5) and self.options.flip
        return moved.flip(3) if mirrored else moved

    def _random(self) -> torch.Generator:
        digest = hashlib.sha256(self.key.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def generate_images(
    model: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    low: Float32[Tensor, " c"],
    high: Float32[Tensor, " c"],
    *,
    count: int,
    seed: int,
    options: Generation | None = None,
    executor: Executor | None = None,
) -> Labelled:
    """Return images that the model takes for its classes, the classes in turn.

    Args:
        model: Gives logits, float32 (n, k), of float32 images. Left as it is.
        shape: Channels, height and width of an image.
        classes: k.
        low: Smallest value of each channel.
        high: Largest value of each channel.
        count: Images wanted; fewer come back where the model does not give enough of them their class.
        seed: Of everything random.
        options: How they are made.
        executor: Where; here if None. Its bench must have this model, and these classes and bounds.

    Returns:
        Images on the CPU, and the class each was made for, which the model gives it.

    Raises:
        DataError: If none was wanted, or a class ended up without any.
    """
    if count < 1:
        raise DataError(f"count: expected one image or more, got {count}")
    wanted = torch.arange(count) % classes
    bench = _bench(model, shape, classes, low, high)
    with frozen(model):
        images, labels = _collect(
            executor or LocalExecutor(bench), wanted, shape, options or Generation(), classes, seed
        )
    missing = sorted(set(wanted.tolist()) - set(labels.tolist()))
    if missing:
        raise DataError(
            f"the model gives no image that was made for them the classes {missing}; expected some of each, "
            f"give clean images instead"
        )
    order = _in_turn(labels)
    return Labelled(images[order], labels[order])


def norm_distance(norm: nn.BatchNorm2d, features: Float32[Tensor, "n c h w"]) -> Tensor:
    """Return how far a batch's mean and variance are from a batch norm's running ones; 0 if it has none.

    References:
        Yin et al., DeepInversion, CVPR 2020, eq. 4.
    """
    if norm.running_mean is None or norm.running_var is None:
        return features.new_zeros(())
    mean = features.mean(dim=(0, 2, 3))
    variance = features.var(dim=(0, 2, 3), unbiased=False)
    means: Tensor = torch.linalg.vector_norm(mean - norm.running_mean)
    variances: Tensor = torch.linalg.vector_norm(variance - norm.running_var)
    return means + variances


def variation(images: Float32[Tensor, "n c h w"]) -> Tensor:
    """Return the mean squared difference of neighbours, to the right and below.

    Examples:
        >>> variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])).item()
        7.0
    """
    right = (images[..., 1:] - images[..., :-1]).square().mean()
    below = (images[..., 1:, :] - images[..., :-1, :]).square().mean()
    return right + below


def _bench(model: nn.Module, shape: tuple[int, int, int], classes: int, low: Tensor, high: Tensor) -> Bench:
    none = Labelled(torch.empty((0, *shape)), torch.empty(0, dtype=torch.int64))
    return Bench(model, classes, none, none, low, high, generated=True)


def _collect(
    executor: Executor,
    wanted: Int64[Tensor, " n"],
    shape: tuple[int, int, int],
    options: Generation,
    classes: int,
    seed: int,
) -> tuple[Float32[Tensor, "m c h w"], Int64[Tensor, " m"]]:
    """Make batches until there are as many of each class as wanted, or the rounds are over."""
    quota = torch.bincount(wanted, minlength=classes)
    batches = -(-len(wanted) // options.batch)
    images, labels = torch.empty((0, *shape)), torch.empty(0, dtype=torch.int64)
    for made in range(options.rounds):
        units = [
            ImageBatch(shape, number, options, seed) for number in range(made * batches, (made + 1) * batches)
        ]
        for arrays in gather(executor, units):
            right = arrays["predicted"] == arrays["labels"]
            images = torch.cat([images, torch.from_numpy(arrays["images"][right])])
            labels = torch.cat([labels, torch.from_numpy(arrays["labels"][right])])
        kept = _within(labels, quota)
        images, labels = images[kept], labels[kept]
        if len(labels) == len(wanted):
            break
    return images, labels


def _within(labels: Int64[Tensor, " n"], quota: Int64[Tensor, " k"]) -> Bool[Tensor, " n"]:
    """Tell which rows are among the first of their class, as many as there are to be."""
    nth: Bool[Tensor, " n"] = _place_in_class(labels) < quota[labels]
    return nth


def _in_turn(labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return the rows so that classes take turns: the first of each class, the second of each, …."""
    nth = _place_in_class(labels)
    return torch.from_numpy(np.lexsort((labels.numpy(), nth.numpy())).astype(np.int64))


def _place_in_class(labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    places = torch.zeros_like(labels)
    for label in torch.unique(labels).tolist():
        rows = labels == label
        places[rows] = torch.arange(int(rows.sum()))
    return places


@contextmanager
def _norm_inputs(model: nn.Module) -> Iterator[list[tuple[nn.BatchNorm2d, Tensor]]]:
    """Lend a list that fills, as the model runs, with its batch norms and what goes into them."""
    seen: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def keep(norm: nn.Module, inputs: Sequence[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        seen.append((norm, inputs[0]))

    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    handles = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
