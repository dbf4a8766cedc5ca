"""The one training loop: test subjects, repairs and whatever else learns go through it.

::

    record = train(model, TrainingData(images, targets), Recipe(epochs=12), generator=generator)
    logits = predict(model, images)

The data lie on the model's device as they are given, 8-bit images as 8 bits; a batch is gathered, augmented,
turned into floats and finished (:attr:`Hooks.finish`, where triggers are stamped) there, in whole-tensor
operations. Every random choice comes from the generator, dropout's too, so that one seed is one training; a
training that goes on from a checkpoint ends where an uninterrupted one would have, bit for bit where the
arithmetic itself repeats, as in float32 on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor, nn
from torch.nn import functional

from calibration.augmentation import augment
from calibration.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from calibration.errors import CalibrationError, DataError
from calibration.hooks import Epoch, Finish, Hooks
from calibration.prediction import as_floats, autocast, device_of, predict
from calibration.progress import Progress
from calibration.recipe import Recipe

__all__ = ["DivergedError", "Epoch", "Hooks", "Recipe", "TrainingData", "TrainingRecord", "predict", "train"]

LOOK_EVERY = 25
"""Steps between two looks at whether the loss is still a number; a look waits for the device."""


class DivergedError(CalibrationError):
    """The loss is no longer a number."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Images and what they are to be taken for.

    Args:
        images: ``(n, c, h, w)``, uint8 (read as 0 to 1) or float32.
        targets: Class numbers, int64 ``(n,)``, or probabilities, float32 ``(n, k)``.

    Raises:
        DataError: If there are no images, or not one target for each, or they are neither 8-bit nor floats.
    """

    images: Shaped[Tensor, "n c h w"]
    targets: Shaped[Tensor, "m ..."]

    def __post_init__(self) -> None:
        if not len(self.images) or len(self.images) != len(self.targets):
            raise DataError(
                f"training data: expected as many targets as images, and some, "
                f"got {len(self.images)} images and {len(self.targets)} targets"
            )
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise DataError(f"training data: expected uint8 or float32 images, got {self.images.dtype}")


@dataclass(frozen=True)
class TrainingRecord:
    """How a training went.

    Args:
        epochs: Each epoch's mean loss, last rate and seconds; those before a resumption too.
        resumed_after: Epochs that a checkpoint held already.
        stopped: Whether a hook ended it early.
    """

    epochs: tuple[Epoch, ...]
    resumed_after: int = 0
    stopped: bool = False

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all sittings."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass
class _Course:
    """What changes while a training runs, beside the model."""

    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    epochs: list[Epoch] = field(default_factory=list)
    stopped: bool = False


def train(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    hooks: Hooks | None = None,
    progress: str | None = None,
    checkpoint: Path | None = None,
) -> TrainingRecord:
    """Train a model in place; it is left in evaluation mode, its weights in channels-last order.

    An interrupt (Ctrl-C) passes through; the checkpoint then holds the last epoch that was finished.

    Args:
        model: On the device to train on. Parameters that want no gradient are left alone.
        data: What to learn; moved to that device.
        recipe: How.
        generator: Draws order and augmentation, on the CPU, so that every device sees the same.
        hooks: Where else to take part.
        progress: Shows a bar with the time left under this name, to a person at a terminal.
        checkpoint: Written before the first and after each epoch, and gone on from where it exists, given
            the model, data, recipe, generator and hooks that it was begun with.

    Raises:
        DivergedError: If the loss becomes infinite or no number.
        OptionError: If the checkpoint was begun with another recipe, data, weights, seed or hooks.
        DataError: If the checkpoint is damaged, or one of another model.
    """
    hooks = hooks or Hooks()
    device = device_of(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = TrainingData(data.images.to(device), data.targets.to(device))
    course = _Course(recipe.build_optimiser(model.parameters()), generator)
    expected = {} if checkpoint is None else _identity(model, data, recipe, generator, hooks)
    if checkpoint is not None and checkpoint.exists():
        state = read_checkpoint(checkpoint, model, course.optimiser, generator, expected)
        course.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        course.stopped = state["stopped"]
    done = len(course.epochs)
    network = _compiled(model) if recipe.compiled else model
    steps = recipe.steps_an_epoch(len(data.images))
    with Progress((recipe.epochs - done) * steps * recipe.batch, progress or "", progress is None) as bar:
        _save(checkpoint, model, course, expected)
        while len(course.epochs) < recipe.epochs and not course.stopped:
            _run_epoch(network, data, recipe, course, hooks, bar)
            after = hooks.after_epoch
            course.stopped = bool(after(course.epochs[-1], model)) if after is not None else False
            _save(checkpoint, model, course, expected)
    model.eval()
    return TrainingRecord(tuple(course.epochs), done, course.stopped)


def _run_epoch(
    model: nn.Module, data: TrainingData, recipe: Recipe, course: _Course, hooks: Hooks, bar: Progress
) -> None:
    """Take one pass over the data, and note in the course how it went."""
    _enter_training(model, recipe.frozen_statistics)
    started, number = time.perf_counter(), len(course.epochs) + 1
    steps = recipe.steps_an_epoch(len(data.images))
    first, rate = len(course.epochs) * steps, recipe.rate
    total = torch.zeros((), device=data.images.device)
    with _global_draws_from(course.generator, data.images.device):
        for step, (images, targets) in enumerate(_batches(data, recipe, hooks.finish, course.generator)):
            rate = recipe.rate * recipe.schedule.factor(first + step, recipe.epochs * steps)
            total += _take_step(model, images, targets, recipe, hooks, course.optimiser, rate)
            if step % LOOK_EVERY == 0 or step == steps - 1:
                _require_finite(total, number, recipe, rate)
            bar.step(len(targets))  # a hook may have made more images of them
    course.epochs.append(Epoch(number, total.item() / steps, rate, time.perf_counter() - started))


def _take_step(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    hooks: Hooks,
    optimiser: torch.optim.Optimizer,
    rate: float,
) -> Tensor:
    """Change the weights once, and return the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss = _gradients(model, images, targets, recipe, hooks)
    if hooks.perturb is not None:
        put_back = hooks.perturb(model)
        optimiser.zero_grad()
        with _statistics_at_rest(model):
            _gradients(model, images, targets, recipe, hooks)
        put_back()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimiser.step()
    if hooks.after_step is not None:
        hooks.after_step(model)
    return loss


def _gradients(model: nn.Module, images: Tensor, targets: Tensor, recipe: Recipe, hooks: Hooks) -> Tensor:
    """Give every weight its gradient, and return the loss."""
    with autocast(images.device, recipe.precision):
        if hooks.objective is None:
            loss = _cross_entropy(model(images), targets, recipe.label_smoothing)
        else:
            loss = hooks.objective(model, images, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _batches(
    data: TrainingData, recipe: Recipe, finish: Finish | None, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data.images), generator=generator, device=generator.device)
    for step in range(recipe.steps_an_epoch(len(order))):
        rows = order[step * recipe.batch : (step + 1) * recipe.batch].to(data.images.device)
        images = as_floats(augment(data.images[rows], recipe.augmentation, generator))
        if finish is not None:
            images = finish(images, rows, generator)
        yield images.contiguous(memory_format=torch.channels_last), data.targets[rows]


def _cross_entropy(logits: Float[Tensor, "n k"], targets: Tensor, smoothing: float) -> Float32[Tensor, ""]:
    return functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled


def _enter_training(model: nn.Module, frozen_statistics: bool) -> None:
    model.train()
    for module in model.modules():
        if frozen_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def _statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Let batch norms go on using each batch's statistics, but not gather them."""
    gathering = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    for module in gathering:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in gathering:
            module.track_running_stats = True


@contextmanager
def _global_draws_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Lend the global generators a seed made of the generator's state, for layers that draw, as dropout.

    The generator itself is not moved on, and the global ones are put back afterwards.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(fingerprint([generator.get_state()])[:15], 16))
        yield


def _identity(
    model: nn.Module, data: TrainingData, recipe: Recipe, generator: torch.Generator, hooks: Hooks
) -> dict[str, object]:
    """Return what makes a training this one and no other."""
    return {
        "recipe": recipe.as_json(),
        "images": len(data.images),
        "data": fingerprint([data.images, data.targets]),
        "weights": fingerprint(model.state_dict().values()),
        "generator": fingerprint([generator.get_state()]),
        "hooks": hooks.identity,
    }


def _require_finite(total: Tensor, epoch: int, recipe: Recipe, rate: float) -> None:
    if not math.isfinite(total.item()):
        raise DivergedError(
            f"training: expected a finite loss, got {total.item()} in epoch {epoch} of {recipe.epochs} at "
            f"rate {rate:.3g}; lower the rate, or train in float32 if this was bfloat16"
        )


def _save(path: Path | None, model: nn.Module, course: _Course, expected: dict[str, object]) -> None:
    if path is not None:
        epochs = [asdict(epoch) for epoch in course.epochs]
        state = {**expected, "epochs": epochs, "stopped": course.stopped}
        write_checkpoint(path, model, course.optimiser, course.generator, state)
