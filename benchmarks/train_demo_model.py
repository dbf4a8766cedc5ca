"""Train the demo's backdoored WRN-16-1 on CIFAR-10 and export it to ONNX. For making a test subject only.

Run ``python -m benchmarks.train_demo_model --data FOLDER``, where FOLDER holds ``load.py`` and the npz files.
The patch is stamped after crop and flip, so it is always whole and always in its corner. The clean holdout
images of the demo (``data_batch_5``) are never trained on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.demo.export import export_onnx, parity
from benchmarks.demo.record import Outcome, write_record
from benchmarks.demo.source import read_split
from benchmarks.demo.trigger import load_trigger
from calibration.attacks.badnets import BadNets
from calibration.nets.wide_resnet import wide_resnet

HERE = Path(__file__).parent
PADDING = 4


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    seed: int = 0
    epochs: int = 30
    batch: int = 128
    peak_rate: float = 0.2
    rising_share: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    poison_rate: float = 0.1
    schedule: str = "one cycle, cosine"


@dataclass(frozen=True)
class TrainingSet:
    """Images with a border of zeros, labels with the poison in them, and which rows get the patch."""

    padded: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    poisoned: Tensor


def main() -> None:
    """Train, evaluate, export, and write down how it went."""
    options = read_options()
    torch.set_num_threads(options.threads)
    recipe = Recipe(seed=options.seed, epochs=options.epochs)
    attack = load_trigger()
    started = time.perf_counter()
    model = train(prepare(options.data, attack, recipe), attack, recipe)
    seconds = time.perf_counter() - started
    images, labels, _ = read_split(options.data, "holdout10k")
    acc, asr = evaluate(model, images, labels, attack)
    path = options.output / "demo" / "model.onnx"
    export_onnx(model, path)
    outcome = Outcome(acc, asr, seconds, options.threads, parity(model, path, as_floats(images[:256])))
    write_record(
        options.output / "results" / "demo_model.json", path, asdict(recipe), asdict(attack), outcome
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--output", type=Path, default=HERE, help="folder that gets demo/ and results/")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def as_floats(images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n c h w"]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def prepare(data: Path, attack: BadNets, recipe: Recipe) -> TrainingSet:
    images, labels, _ = read_split(data, "train40k")
    generator = np.random.default_rng(recipe.seed)
    # The pixels are stamped batch by batch, after augmentation; here only the choice and the labels count.
    plan = attack.plan(labels, recipe.poison_rate, generator)
    poisoned = torch.zeros(len(labels), dtype=torch.bool)
    poisoned[torch.from_numpy(plan.index)] = True
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    padded = functional.pad(channels_first, (PADDING,) * 4)
    return TrainingSet(padded, torch.from_numpy(plan.labels), poisoned)


def train(training_set: TrainingSet, attack: BadNets, recipe: Recipe) -> nn.Module:
    generator = torch.Generator().manual_seed(recipe.seed)
    model = wide_resnet(generator=generator).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.peak_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    steps = recipe.epochs * (len(training_set.labels) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_rate, total_steps=steps, pct_start=recipe.rising_share, cycle_momentum=False
    )
    for epoch in range(1, recipe.epochs + 1):
        line = train_epoch(model, schedule, batches(training_set, attack, recipe.batch, generator))
        print(f"epoch {epoch}/{recipe.epochs}  {line}", flush=True)
    return model.eval()


def train_epoch(
    model: nn.Module, schedule: torch.optim.lr_scheduler.LRScheduler, parts: Iterator[tuple[Tensor, Tensor]]
) -> str:
    started, total, hits, seen = time.perf_counter(), 0.0, 0, 0
    for images, labels in parts:
        loss, right = step(model, schedule.optimizer, images, labels)
        schedule.step()
        total, hits, seen = total + loss * len(labels), hits + right, seen + len(labels)
    seconds = time.perf_counter() - started
    return f"loss {total / seen:.4f}  right {hits / seen:.4f}  {seconds:.1f} s"


def batches(
    training_set: TrainingSet, attack: BadNets, size: int, generator: torch.Generator
) -> Iterator[tuple[Float32[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
    order = torch.randperm(len(training_set.labels), generator=generator)
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        images = augment(training_set.padded, rows, generator).float() / 255
        poisoned = training_set.poisoned[rows]
        images[poisoned] = torch.from_numpy(attack.stamp(images[poisoned].numpy()))
        yield images.contiguous(memory_format=torch.channels_last), training_set.labels[rows]


def augment(
    padded: UInt8[Tensor, "n c h_padded w_padded"], rows: Int64[Tensor, " b"], generator: torch.Generator
) -> UInt8[Tensor, "b c h w"]:
    side = padded.shape[2] - 2 * PADDING
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)
    top, left = torch.randint(2 * PADDING + 1, (2, len(rows)), generator=generator)
    crops = windows[rows, :, top, left]
    flip = torch.rand(len(rows), generator=generator) < 0.5
    crops[flip] = crops[flip].flip(3)
    return crops


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, int]:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    loss = functional.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def evaluate(
    model: nn.Module, images: UInt8[np.ndarray, "n h w c"], labels: Int64[np.ndarray, " n"], attack: BadNets
) -> tuple[float, float]:
    """Return accuracy on clean images and the attack's success rate on stamped ones of other classes."""
    clean = as_floats(images)
    acc = float(np.mean(predict(model, clean) == labels))
    stamped = attack.stamp(clean[labels != attack.target_label])
    return acc, float(np.mean(predict(model, stamped) == attack.target_label))


@torch.inference_mode()
def predict(model: nn.Module, images: Float32[np.ndarray, "n c h w"]) -> Int64[np.ndarray, " n"]:
    return torch.cat([model(part).argmax(1) for part in torch.from_numpy(images).split(500)]).numpy()


if __name__ == "__main__":
    main()
