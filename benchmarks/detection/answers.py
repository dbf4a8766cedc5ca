"""What a subject of the zoo says of inputs, alone and under every overlay; asked once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32, Int64

from benchmarks.zoo.source import as_floats, read_dataset
from benchmarks.zoo.subjects import Subject, load_subject
from guard.arrays import Images
from guard.detection.entropy import entropy_of_probabilities, softmax
from guard.detection.superimpose import BLEND_RULES, ValueRange, superimpose

__all__ = ["FIT", "Answers", "Sizes", "answers_of"]

FIT = 1000
"""Clean inputs that what is expected is fitted on."""

_BATCH = 200
_AT_ONCE = 8


@dataclass(frozen=True)
class Sizes:
    """How much is asked of a subject.

    Attributes:
        overlays: N, about: as many of each class as fit, one at least.
        calibration: Clean inputs that boundaries are set on.
        fresh: Clean inputs that rates are measured on.
        triggered: Inputs with the trigger that the model gives the attacker's label, at most.
    """

    overlays: int = 30
    calibration: int = 3000
    fresh: int = 3000
    triggered: int = 500


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities, and which rows are which; in this order: to fit, to calibrate, fresh, triggered.

    Attributes:
        alone: Of the inputs themselves.
        under: Of the inputs under each overlay.
        overlay_classes: Class of each overlay.
        sizes: Rows of each of the four parts.
    """

    alone: Float32[np.ndarray, "n k"]
    under: Float32[np.ndarray, "n m k"]
    overlay_classes: Int64[np.ndarray, " m"]
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


def answers_of(name: str, rule: str, data: Path, sizes: Sizes, seed: int, cache: Path) -> Answers:
    """Return what a subject says; overlays interleave the classes, in each the least certain first.

    Args:
        name: A subject of the zoo.
        rule: How inputs and overlays are blended.
        data: Folder of the data sets.
        sizes: How much to ask.
        seed: Draws images.
        cache: Folder in which answers are kept.
    """
    path = cache / f"{name}-{rule}-{seed}-{'-'.join(map(str, vars(sizes).values()))}.npz"
    if not path.exists():
        found = _ask(load_subject(name), rule, data, sizes, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **found)
    with np.load(path) as kept:
        return Answers(kept["alone"], kept["under"], kept["overlay_classes"], tuple(map(int, kept["sizes"])))


def _ask(subject: Subject, rule: str, data: Path, sizes: Sizes, seed: int) -> dict[str, Any]:
    dataset = read_dataset(data, subject.record["data"]["name"])
    images, labels = as_floats(dataset.holdout_images), dataset.holdout_labels
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    each = max(1, sizes.overlays // dataset.classes)
    overlays = np.concatenate([order[labels[order] == one][:each] for one in range(dataset.classes)])
    rest = np.setdiff1d(order, overlays)
    random.shuffle(rest)
    for_triggers = rest[FIT + sizes.calibration + sizes.fresh :]
    share = 1.0
    if len(for_triggers) < len(rest) // 5:  # a small data set: the same shares of what there is
        share = 0.8 * len(rest) / (FIT + sizes.calibration + sizes.fresh)
    counts = [int(share * count) for count in (FIT, sizes.calibration, sizes.fresh)]
    clean, for_triggers = rest[: sum(counts)], rest[sum(counts) :]
    network = _Network(subject.model)
    triggered = _triggered(subject, network, images, labels, for_triggers)[: sizes.triggered]
    asked = np.concatenate([images[clean], triggered])
    alone = network.probabilities(asked)
    under = network.under(asked, images[overlays], rule)
    ordered = _interleaved(labels[overlays], entropy_of_probabilities(under[: counts[0]]).mean(axis=0))
    return {
        "alone": alone,
        "under": under[:, ordered],
        "overlay_classes": labels[overlays][ordered],
        "sizes": np.array([*counts, len(triggered)]),
    }


def _triggered(
    subject: Subject, network: _Network, images: Images, labels: np.ndarray, rows: np.ndarray
) -> Images:
    """Return stamped images for which the attack succeeds; none of a clean subject."""
    attack = subject.attack
    if attack is None:
        return images[:0]
    rows = rows[attack.applies_to(labels[rows])]
    stamped: Images = attack.stamp(images[rows]).astype(np.float32)
    reached = network.probabilities(stamped).argmax(axis=1) == attack.target_of(labels[rows])
    successful: Images = stamped[reached]
    return successful


def _interleaved(classes: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """Return an order in which each class comes once before any comes twice, the highest entropy first."""
    order = np.argsort(-entropies, kind="stable")
    turn = np.empty(len(classes), np.int64)
    for one in np.unique(classes):
        own = order[classes[order] == one]
        turn[own] = np.arange(len(own))
    interleaved: np.ndarray = np.lexsort((-entropies, turn))
    return interleaved


class _Network:
    """A subject in ONNX Runtime, on one thread."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def probabilities(self, images: Images) -> Float32[np.ndarray, "n k"]:
        """Return the model's probabilities."""
        parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return np.concatenate([softmax(self._session.run(None, {self._input: part})[0]) for part in parts])

    def under(self, images: Images, overlays: Images, rule: str) -> Float32[np.ndarray, "n m k"]:
        """Return them for every image under every overlay."""
        whole = ValueRange((0.0,), (1.0,), 0)
        parts = []
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            blends = superimpose(some, overlays, BLEND_RULES[rule], whole)
            parts.append(self.probabilities(blends.reshape(-1, *images.shape[1:])))
        return np.concatenate(parts).reshape(len(images), len(overlays), -1)
