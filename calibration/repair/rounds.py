"""Training of several nets with an optimiser each, in rounds, for repairs in which nets play each other.

What :func:`calibration.training.train` promises of one net holds here too: a round is done whole or not at
all, a stage that was broken off ends where an unbroken one would have, and a finished one is not done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from calibration.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from calibration.prediction import device_of
from calibration.progress import Progress
from calibration.repair.base import Sitting, StageRecord
from calibration.training import DivergedError

__all__ = ["run_rounds"]

Round = Callable[[int, Callable[[int], None]], float]


def run_rounds(
    stage: str,
    nets: nn.Module,
    optimisers: Sequence[Optimizer],
    play: Round,
    rounds: int,
    *,
    images: int,
    generator: torch.Generator,
    sitting: Sitting,
    identity: str,
) -> StageRecord:
    """Train nets in place; they are left in evaluation mode.

    Args:
        stage: Its name, unlike that of any other stage of the repair.
        nets: All that changes, as one module.
        optimisers: Of its parts.
        play: Gets the number of a round, from 0, and what to tell of each lot of images done; trains, and
            returns the mean loss. It draws from the generator, and depends on nothing else that changes.
        rounds: How many.
        images: Images of a round, as they are told.
        generator: Draws everything.
        sitting: Where the checkpoint goes, and whether to show how far it is.
        identity: Says what a round does, in other words where it does something else.

    Raises:
        DivergedError: If a round's loss is infinite or no number.
        OptionError: If the checkpoint is that of another training.
        DataError: If the checkpoint is damaged, or one of other nets.
    """
    path = sitting.checkpoint(stage)
    expected: dict[str, object] = {}
    losses: list[float] = []
    seconds = 0.0
    if path is not None:
        expected = _identity(nets, rounds, generator, identity)
        if path.exists():
            state = read_checkpoint(path, nets, optimisers, generator, expected)
            losses, seconds = state["losses"], state["seconds"]
    with Progress((rounds - len(losses)) * images, stage, sitting.quiet) as bar:
        _save(path, nets, optimisers, generator, {**expected, "losses": losses, "seconds": seconds})
        while len(losses) < rounds:
            started = time.perf_counter()
            with _global_draws_from(generator, nets):
                loss = play(len(losses), bar.step)
            _require_finite(stage, loss, len(losses) + 1, rounds)
            losses.append(loss)
            seconds += time.perf_counter() - started
            _save(path, nets, optimisers, generator, {**expected, "losses": losses, "seconds": seconds})
    nets.eval()
    return StageRecord(stage, seconds, images * rounds, tuple(losses))


def _identity(nets: nn.Module, rounds: int, generator: torch.Generator, identity: str) -> dict[str, object]:
    return {
        "rounds": rounds,
        "weights": fingerprint(nets.state_dict().values()),
        "generator": fingerprint([generator.get_state()]),
        "play": identity,
    }


def _save(
    path: Path | None,
    nets: nn.Module,
    optimisers: Sequence[Optimizer],
    generator: torch.Generator,
    state: dict[str, object],
) -> None:
    if path is not None:
        write_checkpoint(path, nets, optimisers, generator, state)


def _require_finite(stage: str, loss: float, number: int, rounds: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"{stage}: expected a finite loss, got {loss} in round {number} of {rounds}; lower the rate, or "
            f"train in float32 if this was bfloat16"
        )


@contextmanager
def _global_draws_from(generator: torch.Generator, nets: nn.Module) -> Iterator[None]:
    """Lend the global generators a seed made of the generator's state, for layers that draw, as dropout."""
    device = device_of(nets)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(fingerprint([generator.get_state()])[:15], 16))
        yield
