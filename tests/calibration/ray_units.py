"""Units for tests of a cluster; in a file of their own, so that its workers can import them."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from calibration.errors import TooFewImagesError
from calibration.onnx_import import import_onnx
from calibration.scan.base import Arrays, Bench, Labelled, Unit
from tests.tiny_models import conv_classifier


def bench(seed: int = 0) -> Bench:
    """A small imported network and noise; its weights ask for no gradients."""
    model = import_onnx(conv_classifier(classes=4), "conv.onnx").requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((24, 3, 8, 8), generator=generator)
    labels = model(images).argmax(1)
    return Bench(
        model,
        4,
        Labelled(images[:16], labels[:16]),
        Labelled(images[16:], labels[16:]),
        torch.zeros(3),
        torch.ones(3),
        digest="bench",
    )


@dataclass(frozen=True)
class Climb(Unit):
    """Steps of Adam on a pattern that is to bring a label about: gradients, and rounding that piles up."""

    label: int
    steps: int = 20

    @property
    def key(self) -> str:
        return f"climb-{self.label}-{self.steps}"

    @property
    def weight(self) -> int:
        return self.steps

    def run(self, bench: Bench) -> Arrays:
        generator = torch.Generator().manual_seed(self.label)
        pattern = torch.rand(bench.shape, generator=generator).requires_grad_()
        optimizer = torch.optim.Adam([pattern], lr=0.05)
        target = torch.full((len(bench.clean),), self.label)
        for _ in range(self.steps):
            logits = bench.model((bench.clean.images + pattern).clamp(0, 1))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, target).backward()
            optimizer.step()
        wide = pattern.detach().numpy().repeat(40, axis=0).repeat(4, axis=1)  # more than Ray sends inline
        return {"pattern": wide, "logits": logits.detach().numpy(), "steps": np.array(self.steps)}


@dataclass(frozen=True)
class Describe(Unit):
    """What the worker is like, and what has become of the bench."""

    number: int = 0

    @property
    def key(self) -> str:
        return f"describe-{self.number}"

    @property
    def weight(self) -> int:
        return 1

    def run(self, bench: Bench) -> Arrays:
        gradients = [weight.requires_grad for weight in bench.model.parameters()]
        with torch.no_grad():
            logits = bench.model(bench.held.images).numpy()
        return {
            "threads": np.array(torch.get_num_threads()),
            "variable": np.array(int(os.environ["OMP_NUM_THREADS"])),
            "gradients": np.array(any(gradients) or not gradients),
            "training": np.array(bench.model.training),
            "logits": logits,
            "held": bench.held.images.numpy(),
        }


@dataclass(frozen=True)
class Deadly(Unit):
    """Kills its worker so many times; then does what another unit does."""

    folder: str
    deaths: int
    inner: Climb

    @property
    def key(self) -> str:
        return f"deadly-{self.deaths}-{self.inner.key}"

    @property
    def weight(self) -> int:
        return 10_000

    def run(self, bench: Bench) -> Arrays:
        died = len(list(Path(self.folder).iterdir()))
        if died < self.deaths:
            (Path(self.folder) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.run(bench)


@dataclass(frozen=True)
class Stuck(Unit):
    """Never ends the first time, having said where it is; then does what another unit does."""

    folder: str
    inner: Climb

    @property
    def key(self) -> str:
        return f"stuck-{self.inner.key}"

    @property
    def weight(self) -> int:
        return 10_000

    def run(self, bench: Bench) -> Arrays:
        import ray

        said = Path(self.folder) / "node"
        if not said.exists():
            partial = said.with_suffix(".partial")
            partial.write_text(f"{ray.get_runtime_context().get_node_id()} {os.getpid()}")
            partial.replace(said)
            threading.Event().wait(600)
        return self.inner.run(bench)


@dataclass(frozen=True)
class Failing(Unit):
    """Raises an error whose constructor wants more than its message, and counts how often."""

    folder: str

    @property
    def key(self) -> str:
        return "failing"

    @property
    def weight(self) -> int:
        return 1

    def run(self, bench: Bench) -> Arrays:
        (Path(self.folder) / str(len(list(Path(self.folder).iterdir())))).touch()
        raise TooFewImagesError("expected 9 images, got 2", needed=9, got=2)
