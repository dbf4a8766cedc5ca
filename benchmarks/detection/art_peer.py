"""STRIP as the Adversarial Robustness Toolbox has it, on the networks and images of our tables.

It needs an environment of its own, and bundles that the benchmark writes and reads::

    python -m benchmarks.bench_detection --data FOLDER --art bundle
    python -m venv build/art
    build/art/bin/pip install adversarial-robustness-toolbox==1.20.1 onnxruntime
    build/art/bin/python -m benchmarks.detection.art_peer build/bench_detection/art

Everything is ART's own, options too: 20 overlays drawn from the images that it is calibrated on, image and
overlay averaged, a Normal distribution's percentile. The scores, which ART does not give out, are read off
the entropies that it asks scipy for. It takes them over the overlays, class by class, where the paper takes
them over the classes, overlay by overlay; that is its code, and left as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from art.defences.transformer.poisoning import STRIP
from art.estimators.classification import BlackBoxClassifier
from art.estimators.poison_mitigation.strip import strip as art_strip

SAMPLES, RATE, SEED = 20, 0.01, 0


class Asked(BlackBoxClassifier):
    """Keeps what it asks under a name of its own: ART's defence takes the base class's for itself."""

    def __init__(self, ask: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], classes: int) -> None:
        super().__init__(ask, shape, classes)
        self.ask = ask

    def predict(self, x: np.ndarray, batch_size: int = 128, **options: Any) -> np.ndarray:
        """Return the probabilities of images."""
        return self.ask(x)


def main() -> None:
    """Measure every bundle of a folder that has no answer yet."""
    for path in sorted(Path(sys.argv[1]).glob("*.bundle.npz")):
        answer = path.with_name(path.name.replace(".bundle.", ".answer."))
        if not answer.exists():
            np.savez(answer, **measure(path))
            print(path.name, flush=True)


def measure(path: Path) -> dict[str, Any]:
    """Return scores, rejections and the processor time of one input."""
    with np.load(path, allow_pickle=False) as stored:
        bundle = dict(stored)
    ask = network(str(bundle["model"]), int(bundle["classes"]))
    classifier = Asked(ask, bundle["calibration"].shape[1:], int(bundle["classes"]))
    classifier = STRIP(classifier)(num_samples=SAMPLES, false_acceptance_rate=RATE)
    np.random.seed(SEED)  # ART draws from it
    bits: list[float] = []
    record_into(bits)
    classifier.mitigate(bundle["calibration"])
    calibrated = len(bits)
    started = time.process_time()
    rejected = [
        ~classifier.predict(bundle[part]).any(axis=1) for part in ("clean", "triggered") if len(bundle[part])
    ]
    seconds = time.process_time() - started
    scores = np.array(bits[calibrated:])
    return {
        "scores": -scores,
        "rejected": np.concatenate(rejected),
        "clean": len(bundle["clean"]),
        "seconds_each": seconds / len(scores),
    }


def network(path: str, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives the probabilities of images, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def probabilities(images: np.ndarray) -> np.ndarray:
        logits = session.run(None, {name: images.astype(np.float32)})[0]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (shifted / shifted.sum(axis=1, keepdims=True)).reshape(-1, classes)

    return probabilities


def record_into(bits: list[float]) -> None:
    """Have the score of each input that ART looks at written down."""
    entropy = art_strip.entropy

    def recorded(*arguments: Any, **options: Any) -> Any:
        found = entropy(*arguments, **options)
        bits.append(float(np.sum(found)) / SAMPLES)
        return found

    art_strip.entropy = recorded


if __name__ == "__main__":
    main()
