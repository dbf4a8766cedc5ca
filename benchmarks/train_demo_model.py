"""Train the demo's backdoored WRN-16-1 on CIFAR-10 and export it to ONNX. For making a test subject only.

Run ``python -m benchmarks.train_demo_model --data FOLDER``, where FOLDER holds ``load.py`` and the npz files.
The patch is stamped after crop and flip, so it is always whole and always in its corner. The clean holdout
images of the demo (``data_batch_5``) are never trained on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import nn

from benchmarks.demo.export import export_onnx, parity
from benchmarks.demo.record import Outcome, write_record
from benchmarks.demo.source import read_split
from benchmarks.demo.trigger import load_trigger
from calibration.attacks.badnets import BadNets
from calibration.attacks.dressing import dressing
from calibration.attacks.measure import asr
from calibration.nets.wide_resnet import wide_resnet
from calibration.recipe import Recipe
from calibration.schedules import OneCycle
from calibration.training import Epoch, Hooks, TrainingData, TrainingRecord, predict, train

HERE = Path(__file__).parent
RECIPE = Recipe(epochs=30, batch=128, rate=0.2, weight_decay=5e-4, schedule=OneCycle(rising=0.2))
POISON_RATE = 0.1


def main() -> None:
    """Train, evaluate, export, and write down how it went."""
    options = read_options()
    torch.set_num_threads(options.threads)
    recipe, attack = replace(RECIPE, epochs=options.epochs), load_trigger()
    model = wide_resnet(generator=torch.Generator().manual_seed(options.seed))
    training = train_poisoned(model, attack, recipe, options)
    images, labels, _ = read_split(options.data, "holdout10k")
    clean = as_floats(images)
    acc = float(np.mean(classes_of(model, clean) == labels))
    path = options.output / "demo" / "model.onnx"
    export_onnx(model, path)
    outcome = Outcome(
        acc,
        asr(classes_of(model, attack.stamp(clean)), labels, attack),
        training.seconds,
        options.threads,
        parity(model, path, clean[:256]),
    )
    written = {"seed": options.seed, "poison_rate": POISON_RATE, **recipe.as_json()}
    write_record(options.output / "results" / "demo_model.json", path, written, asdict(attack), outcome)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--output", type=Path, default=HERE, help="folder that gets demo/ and results/")
    parser.add_argument("--checkpoint", type=Path, help="file to go on from, and to leave when interrupted")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def train_poisoned(
    model: nn.Module, attack: BadNets, recipe: Recipe, options: argparse.Namespace
) -> TrainingRecord:
    images, labels, _ = read_split(options.data, "train40k")
    plan = attack.plan(labels, POISON_RATE, np.random.default_rng(options.seed))
    return train(
        model,
        TrainingData(
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(plan.labels)
        ),
        recipe,
        generator=torch.Generator().manual_seed(options.seed),
        hooks=Hooks(finish=dressing(attack, plan), after_epoch=say),
        progress="demo model",
        checkpoint=options.checkpoint,
    )


def say(epoch: Epoch, model: nn.Module) -> None:
    del model
    print(f"epoch {epoch.number}  loss {epoch.loss:.4f}  {epoch.seconds:.1f} s", flush=True)


def as_floats(images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n c h w"]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def classes_of(model: nn.Module, images: Float32[np.ndarray, "n c h w"]) -> Int64[np.ndarray, " n"]:
    return predict(model, torch.from_numpy(images)).argmax(1).numpy()


if __name__ == "__main__":
    main()
