"""What a subject of the zoo says of inputs, alone and under every overlay; asked once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from benchmarks.detection.images import Parts, Pool, Sizes
from benchmarks.detection.network import Network
from benchmarks.detection.victims import Victim
from guard.arrays import Images

__all__ = ["Answers", "Asking", "answers_of", "triggered_images"]

_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities, and which rows are which; in this order: to fit, to calibrate, fresh, triggered.

    Attributes:
        alone: Of the inputs themselves.
        under: Of the inputs under each overlay.
        overlay_classes: Class that the model gives each overlay.
        overlays: Its row in the pool.
        sizes: Rows of each of the four parts.
    """

    alone: Float32[np.ndarray, "n k"]
    under: Float32[np.ndarray, "n m k"]
    overlay_classes: Int64[np.ndarray, " m"]
    overlays: Int64[np.ndarray, " m"]
    sizes: tuple[int, ...]

    def part(self, number: int) -> slice:
        """Return the rows of a part."""
        start = sum(self.sizes[:number])
        return slice(start, start + self.sizes[number])

    @property
    def predicted(self) -> Int64[np.ndarray, " n"]:
        """The class that the model gives each input itself."""
        classes: np.ndarray = self.alone.argmax(axis=1)
        return classes


@dataclass(frozen=True, eq=False)
class Asking:
    """What is asked of whom, under which name it is kept, and where."""

    victim: Victim
    pool: Pool
    parts: Parts
    sizes: Sizes
    rule: str
    seed: int
    cache: Path

    def path(self, name: str) -> Path:
        """Return where arrays of a name are kept."""
        return self.cache / f"{name}-{self.rule}-{self.seed}-{self.sizes.overlays}.npz"

    def kept(self, name: str, make: Callable[[], _Arrays]) -> _Arrays:
        """Return arrays, made if they are not there yet, or if the network was made after them."""
        path = self.path(name)
        if not path.exists() or path.stat().st_mtime < self.victim.model.stat().st_mtime:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **make())  # type: ignore[arg-type]
        with np.load(path) as stored:
            return dict(stored)


def answers_of(asking: Asking) -> Answers:
    """Return what a subject says."""
    network = Network(asking.victim.model)
    counts = (len(asking.parts.fit), len(asking.parts.calibration), len(asking.parts.fresh))
    clean = asking.kept(asking.victim.network, lambda: _ask_clean(asking, network))
    overlays = clean["overlays"]
    hit = asking.kept(f"{asking.victim.name}-triggered", lambda: _ask_triggered(asking, network, overlays))
    return Answers(
        np.concatenate([clean["alone"], hit["alone"]]),
        np.concatenate([clean["under"], hit["under"]]),
        network.probabilities(asking.pool.images[overlays]).argmax(axis=1),
        overlays,
        (*counts, len(hit["alone"])),
    )


def triggered_images(asking: Asking, network: Network) -> Images:
    """Return stamped images for which the attack succeeds; none of a clean subject."""
    attack, rows = asking.victim.attack, asking.parts.stamped
    if attack is None:
        return asking.pool.images[:0]
    labels = asking.pool.labels
    rows = rows[attack.applies_to(labels[rows])]
    stamped: Images = attack.stamp(asking.pool.images[rows]).astype(np.float32)
    reached = network.probabilities(stamped).argmax(axis=1) == attack.target_of(labels[rows])
    successful: Images = stamped[reached][: asking.sizes.triggered]
    return successful


def _ask_clean(asking: Asking, network: Network) -> _Arrays:
    parts, images = asking.parts, asking.pool.images
    asked = images[np.concatenate([parts.fit, parts.calibration, parts.fresh])]
    under = network.under(asked, images[parts.overlays], asking.rule)
    return {"alone": network.probabilities(asked), "under": under, "overlays": parts.overlays}


def _ask_triggered(asking: Asking, network: Network, overlays: Int64[np.ndarray, " m"]) -> _Arrays:
    images, classes = triggered_images(asking, network), network.classes
    if not len(images):
        return {
            "alone": np.empty((0, classes), np.float32),
            "under": np.empty((0, len(overlays), classes), np.float32),
        }
    return {
        "alone": network.probabilities(images),
        "under": network.under(images, asking.pool.images[overlays], asking.rule),
    }
