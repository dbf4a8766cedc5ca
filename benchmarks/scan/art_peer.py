"""Neural Cleanse as the Adversarial Robustness Toolbox has it, on the models and images of our scan.

It needs an environment of its own, and a bundle that the project's environment writes::

    python -m benchmarks.scan.art_export --data FOLDER --subject badnets
    python -m venv build/art
    build/art/bin/pip install adversarial-robustness-toolbox==1.20.1 'tensorflow-cpu==2.21.*'
    build/art/bin/python -m benchmarks.scan.art_peer --bundle build/scan_art/badnets.npz --steps 30

Two things are measured, both with ART's own options:

- stock: under Keras 3, ART's ``reset()`` sets every variable of the optimiser to zero, the learning rate with
  them, so that no mask ever moves. A few steps show it.
- repaired: the learning rate is set again after each reset. Nothing else of ART is changed; what it prints on
  each step goes nowhere.

A step goes once through the images in batches of 32; a call is one such batch, forward and back. ART's masks
have three channels, so a mask's L1 norm is given as the sum over pixels of the mean over channels: the norm a
mask of one channel would have. A label's search starts where the last one's ended, as in ART; order counts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np
import tensorflow as tf
from art.defences.transformer.poisoning import NeuralCleanse
from art.estimators.classification import KerasClassifier
from art.estimators.poison_mitigation.neural_cleanse.keras import KerasNeuralCleanse

from benchmarks.machine import commit, describe_machine
from benchmarks.scan.art_keras import as_keras

PACKAGES = ("adversarial-robustness-toolbox", "keras", "tensorflow-cpu", "numpy")
RESULTS = Path(__file__).parent.parent / "results" / "scan_art"
DEFAULT_STEPS = 1000
BATCH = 32
CLOSE_ENOUGH = 1e-3
TRACED = 20
REPAIR = "the optimiser's learning rate, which reset() sets to 0 under Keras 3, is set again after each reset"
NORM = "sum over pixels of the mean over the mask's three channels"


@dataclass(frozen=True, eq=False)
class Bundle:
    """What `art_export` wrote, images channels last."""

    about: dict[str, Any]
    clean_images: np.ndarray
    clean_labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    reference_logits: np.ndarray
    weights: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Bundle:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        weights = {
            name.removeprefix("weight:"): arrays[name] for name in arrays if name.startswith("weight:")
        }
        return cls(
            json.loads(str(arrays["about"])),
            _channels_last(arrays["clean_images"]),
            arrays["clean_labels"],
            _channels_last(arrays["held_images"]),
            arrays["held_labels"],
            arrays["reference_logits"],
            weights,
        )

    def first(self, count: int) -> Bundle:
        """Return the bundle with the first of its clean images only."""
        kept = {
            **vars(self),
            "clean_images": self.clean_images[:count],
            "clean_labels": self.clean_labels[:count],
        }
        return Bundle(**kept)


@dataclass
class Watch:
    """Counts ART's calls and keeps, step by step, what a mask was like after it."""

    calls_per_step: int
    hits: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def over(self, defence: KerasNeuralCleanse) -> None:
        train = defence.train

        def watched(images: Any, targets: Any) -> Any:
            losses = train(images, targets)
            self.hits.append(float(losses[3]))
            if len(self.hits) % self.calls_per_step == 0:
                self.norms.append(l1_norm(defence.mask_tensor.numpy()))
                self.costs.append(float(defence.cost))
            return losses

        defence.train = watched

    def clear(self) -> None:
        for kept in (self.hits, self.norms, self.costs):
            kept.clear()

    @property
    def success(self) -> list[float]:
        """Mean success of each step, over all its images, as ART has it."""
        rows = np.reshape(self.hits[: len(self.norms) * self.calls_per_step], (-1, self.calls_per_step))
        return [float(mean) for mean in rows.mean(axis=1)]

    def trace(self) -> list[dict[str, float]]:
        every = max(1, len(self.norms) // TRACED)
        steps = range(every - 1, len(self.norms), every)
        return [
            {
                "step": step + 1,
                "l1": self.norms[step],
                "success": self.success[step],
                "cost": self.costs[step],
            }
            for step in steps
        ]


def main() -> None:
    options = read_options()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    bundle = Bundle.read(options.bundle).first(options.images)
    model, fidelity = rebuild(bundle)
    classes = bundle.reference_logits.shape[1]
    labels = options.labels or [*range(classes)]
    record = {**describe(options, bundle, labels), "fidelity": fidelity}
    record["stock"] = run_stock(model, bundle, labels[:2], options) if options.stock_steps else None
    print(f"stock: {json.dumps(record['stock'])}", flush=True)
    rows: list[dict[str, Any]] = []
    out = options.out or RESULTS / f"{bundle.about['subject']}.json"
    for row in run_repaired(model, bundle, labels, options):
        rows.append(row)
        whole = rows if len(rows) == classes else None
        record |= {"labels": rows, "summary": summarise(rows, bundle), "outliers": outliers(whole)}
        record["complete"] = len(rows) == len(labels)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
        shown = {name: value for name, value in row.items() if name != "trace"}
        print(json.dumps(shown), flush=True)
    print(json.dumps({"summary": record["summary"], "outliers": record["outliers"]}, indent=2))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure ART's Neural Cleanse on a subject of the zoo.")
    parser.add_argument("--bundle", type=Path, required=True, help="written by benchmarks.scan.art_export")
    parser.add_argument(
        "--steps", type=int, default=30, help=f"of the search; ART's default is {DEFAULT_STEPS}"
    )
    parser.add_argument("--labels", type=int, nargs="+", help="in this order; all by default")
    parser.add_argument("--images", type=int, default=1000, help="how many of the clean images to search on")
    parser.add_argument(
        "--stock-steps", type=int, default=2, help="of the run without our repair; 0 for no such run"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/scan_art/SUBJECT.json")
    options = parser.parse_args()
    if options.steps < 1 or options.images < BATCH:
        parser.error(f"expected a step or more on {BATCH} images or more")
    return options


def describe(options: argparse.Namespace, bundle: Bundle, labels: list[int]) -> dict[str, Any]:
    about = {name: value for name, value in bundle.about.items() if name != "graph"}
    return {
        **about,
        "clean": len(bundle.clean_images),
        "held": len(bundle.held_images),
        "order": labels,
        "steps": options.steps,
        "seed": options.seed,
        "threads": options.threads,
        "repair": REPAIR,
        "norm": NORM,
        "command": " ".join(["python -m benchmarks.scan.art_peer", *sys.argv[1:]]),
        "commit": commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_machine(PACKAGES),
    }


def rebuild(bundle: Bundle) -> tuple[keras.Model, dict[str, float]]:
    """Return the subject with a softmax, as ART expects it, and how far its logits are from ONNX Runtime's.

    Raises:
        ValueError: If they are further apart than 1e-3.
    """
    shape = bundle.clean_images.shape[1:]
    logits_of = as_keras(bundle.about["graph"], bundle.weights, shape)
    expected = bundle.reference_logits
    logits = logits_of.predict(bundle.clean_images[: len(expected)], verbose=0)
    furthest = float(np.abs(logits - expected[: len(logits)]).max())
    if not furthest <= CLOSE_ENOUGH:
        raise ValueError(f"logits: expected ONNX Runtime's within {CLOSE_ENOUGH}, got {furthest} away")
    model = keras.Model(logits_of.inputs, keras.layers.Softmax()(logits_of.outputs[0]))
    model.compile(optimizer="adam", loss="categorical_crossentropy")
    predicted = model.predict(bundle.held_images, verbose=0).argmax(1)
    acc = float((predicted == bundle.held_labels).mean())
    return model, {"largest_logit_difference": furthest, "acc": acc}


def make_defence(model: keras.Model, steps: int, seed: int) -> KerasNeuralCleanse:
    """Return ART's defence with ART's options."""
    keras.utils.set_random_seed(seed)
    classifier = KerasClassifier(model, clip_values=(0.0, 1.0), use_logits=False)
    return NeuralCleanse(classifier)(classifier, steps=steps)


def restore_rate(defence: KerasNeuralCleanse) -> None:
    """Repair ART for Keras 3."""
    reset: Callable[[], None] = defence.reset

    @functools.wraps(reset)
    def reset_but_the_rate() -> None:
        reset()
        defence.opt.learning_rate.assign(defence.learning_rate)

    defence.reset = reset_but_the_rate


def run_stock(
    model: keras.Model, bundle: Bundle, labels: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    """Return what ART as released does: how far the mask moves from where it was drawn."""
    defence = make_defence(model, options.stock_steps, options.seed)
    watch = Watch(len(bundle.clean_images) // defence.batch_size)
    watch.over(defence)
    drawn, asked = defence.mask_tensor_raw.numpy(), float(defence.opt.learning_rate.numpy())
    masks = [search(defence, bundle, label)[0] for label in labels]
    return {
        "labels": labels,
        "steps": options.stock_steps,
        "calls": len(watch.hits),
        "learning_rate": asked,
        "learning_rate_after_reset": float(defence.opt.learning_rate.numpy()),
        "largest_change_of_mask": float(np.abs(defence.mask_tensor_raw.numpy() - drawn).max()),
        "masks_equal": all(np.array_equal(masks[0], mask) for mask in masks),
        "l1": [l1_norm(mask) for mask in masks],
    }


def run_repaired(
    model: keras.Model, bundle: Bundle, labels: list[int], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield a row for each label, as the searches end."""
    defence = make_defence(model, options.steps, options.seed)
    restore_rate(defence)
    watch = Watch(len(bundle.clean_images) // defence.batch_size)
    watch.over(defence)
    for label in labels:
        watch.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        mask, pattern = search(defence, bundle, label)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        yield {
            "label": label,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "steps": len(watch.norms),
            "calls": len(watch.hits),
            "seconds_per_call": seconds / len(watch.hits),
            "l1": l1_norm(mask),
            "l1_of_three_channels": float(np.abs(mask).sum()),
            "l1_of_largest_channel": float(np.abs(mask).max(axis=-1).sum()),
            "reached": bool(max(watch.success) >= defence.attack_success_threshold),
            "largest_cost": max(watch.costs),
            "asr_clean": attack_success(
                model, bundle.clean_images, bundle.clean_labels, label, mask, pattern
            ),
            "asr_held": attack_success(model, bundle.held_images, bundle.held_labels, label, mask, pattern),
            "trace": watch.trace(),
        }


def search(defence: KerasNeuralCleanse, bundle: Bundle, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ART's mask and pattern for a label, height by width by channels."""
    one_hot = np.eye(defence.nb_classes, dtype=np.float32)
    with contextlib.redirect_stdout(io.StringIO()):
        mask, pattern = defence.generate_backdoor(
            bundle.clean_images, one_hot[bundle.clean_labels], one_hot[label]
        )
    return mask, pattern


def attack_success(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    label: int,
    mask: np.ndarray,
    pattern: np.ndarray,
) -> float:
    """Return the share of other classes' images that become the label when stamped."""
    others = images[labels != label]
    stamped = (1 - mask) * others + mask * pattern
    return float((model.predict(stamped, verbose=0).argmax(1) == label).mean())


def l1_norm(mask: np.ndarray) -> float:
    """Return the norm that a mask of one channel would have."""
    return float(np.abs(mask).mean(axis=-1).sum())


def summarise(rows: list[dict[str, Any]], bundle: Bundle) -> dict[str, Any]:
    """Return the cost of what ran and, marked as such, of what did not."""
    calls = sum(row["calls"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    cpu_seconds = sum(row["cpu_seconds"] for row in rows)
    longer = DEFAULT_STEPS / sum(row["steps"] for row in rows)
    classes = bundle.reference_logits.shape[1]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "calls": calls,
        "seconds_per_call": seconds / calls,
        "cpu_seconds_per_call": cpu_seconds / calls,
        "extrapolated": {
            "steps": DEFAULT_STEPS,
            "seconds_per_label": seconds * longer,
            "seconds_for_all_labels": seconds * longer * classes,
            "cpu_seconds_for_all_labels": cpu_seconds * longer * classes,
            "note": "not run: seconds of a step times ART's default; its early stop cannot cut it short",
        },
    }


def outliers(rows: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Return what ART's outlier detection makes of all labels' norms; nothing unless there are all."""
    if rows is None:
        return None
    norms = {row["label"]: row["l1_of_three_channels"] for row in rows}
    median = float(np.median([*norms.values()]))
    spread = 1.4826 * float(np.median([abs(norm - median) for norm in norms.values()]))
    index = {label: (median - norm) / spread for label, norm in sorted(norms.items())}
    return {"anomaly_index": index, "flagged": [label for label, value in index.items() if value > 2]}


def _channels_last(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


if __name__ == "__main__":
    main()
