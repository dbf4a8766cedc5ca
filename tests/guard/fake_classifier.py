"""Classifiers for tests of the waiting line: exact row by row, and under the test's control."""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass, field

import numpy as np

from guard.detection.base import Decision, Evidence
from guard.detection.strip import Strip
from guard.detection.superimpose import BLEND_RULES

ADD = BLEND_RULES["add"]
CLASSES = 3
PATIENCE_S = 60.0


def numbered_images(numbers: list[int]) -> np.ndarray:
    """Return one image of one pixel for each number, which is what the fakes know it by."""
    return np.array(numbers, np.float32).reshape(-1, 1, 1, 1)


def answers_to(numbers: list[int]) -> np.ndarray:
    """Return the logits that a :class:`TableClassifier` gives to these images themselves."""
    column = np.array(numbers, np.float32)[:, None]
    return column * np.array([[1.0, -1.0, 0.5]], np.float32)


def random_table(images: int, overlays: int, seed: int) -> np.ndarray:
    """Return an entropy in bits for each image with each overlay."""
    return np.random.default_rng(seed).uniform(0.0, 2.0, (images, overlays)).astype(np.float32)


def full_check(strip: Strip, entropies: np.ndarray) -> Decision | None:
    """Return what all N passes say of an image, without stopping early."""
    return strip.decide(strip.update(Evidence(), entropies))


@dataclass
class TableClassifier:
    """Looks up the entropy of image i with overlay o in ``table[i, o]``; any other row is out of reach.

    A blend has the logits -1, -1, -1, so that one taken for the image's own answer is seen.
    """

    table: np.ndarray
    batches: list[np.ndarray] = field(default_factory=list)

    def check(
        self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        numbers = images[image_index].reshape(-1).astype(np.int64)
        blended = overlay_index >= 0
        self.batches.append(np.stack([numbers, overlay_index]))
        logits = np.where(blended[:, None], np.float32(-1.0), answers_to(numbers.tolist()))
        entropies = np.where(blended, self.table[numbers, np.maximum(overlay_index, 0)], np.float32(0.0))
        return logits, entropies


class GatedClassifier:
    """Holds every call until the test lets it go; any object with ``check`` can be behind it."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self._calls: queue.Queue[np.ndarray] = queue.Queue()
        self._gate = threading.Semaphore(0)
        self._open = threading.Event()

    def check(
        self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self._calls.put(np.stack([images[image_index][:, 0, 0, 0], overlay_index]))
        if not self._open.is_set() and not self._gate.acquire(timeout=PATIENCE_S):
            raise TimeoutError("the test never let this call go")
        answer: tuple[np.ndarray, np.ndarray] = self._inner.check(  # type: ignore[attr-defined]
            images, image_index, overlay_index
        )
        return answer

    async def next_call(self) -> list[tuple[float, int]]:
        """Wait until the device is inside a call; return its (first pixel, overlay) pairs."""
        pairs = await asyncio.to_thread(self._calls.get, timeout=PATIENCE_S)
        return [(float(pixel), int(overlay)) for pixel, overlay in pairs.T]

    @property
    def untaken_calls(self) -> int:
        """Calls begun that the test has not asked for."""
        return self._calls.qsize()

    def let_one_go(self) -> None:
        """End the call that is held now, or the next."""
        self._gate.release()

    def let_all_go(self) -> None:
        """Hold nothing from now on."""
        self._open.set()
        self._gate.release()
