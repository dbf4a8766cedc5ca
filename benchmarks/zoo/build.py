"""Making a subject: train, measure, export, save the trigger, and write all of it down."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.demo.export import export_onnx, parity
from benchmarks.machine import commit, describe_machine
from benchmarks.zoo.measure import measure
from benchmarks.zoo.source import Dataset, as_floats, build_net, read_dataset, reflections
from benchmarks.zoo.table import SUBJECTS, Plan
from calibration.attacks.base import Attack, Material, Poisoning
from calibration.attacks.dressing import dressing
from calibration.attacks.pruning_aware import PruningAware
from calibration.attacks.table import ATTACKS, make
from calibration.training import Epoch, Hooks, TrainingData, TrainingRecord, train
from calibration.trigger import save_trigger

__all__ = ["Places", "build", "is_of_plan"]

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy")
COMMAND = "python -m benchmarks.zoo build --data FOLDER --only"
PARITY_IMAGES = 256
EMBEDDED_ON = 10_000
"""Images that a pruning-aware attack ranks channels on, and lowers their biases by."""

STARTS = {plan.start for plan in SUBJECTS.values()}
"""Subjects that others begin with: their weights are kept as they were trained, batch norm and all."""


@dataclass(frozen=True)
class Places:
    """Where things are read and written: data, models and triggers, records, and what is not kept in git."""

    data: Path
    models: Path
    records: Path
    work: Path


def build(plan: Plan, places: Places) -> dict[str, Any]:
    """Make one subject, going on where an earlier attempt stopped, and return its record."""
    torch.compiler.reset()  # so that the compiler's limit on versions of one network counts for each subject
    dataset = read_dataset(places.data, plan.dataset)
    attack = fit_attack(plan, dataset, places)
    model, training = _trained(_start(plan, dataset, places), plan, dataset, attack, places)
    folder = places.models / plan.name
    export_onnx(model, folder / "model.onnx")
    if attack is not None:
        save_trigger(attack, folder)
    if plan.name in STARTS:
        save_file(model.state_dict(), _weights(places, plan.name))
    held = as_floats(dataset.holdout_images)
    record = _record(plan, dataset, training, measure(model, held, dataset.holdout_labels, attack))
    if plan.start is not None:
        record["start_sha256"] = _fingerprint(_weights(places, plan.start))["sha256"]
    record["largest_logit_difference"] = parity(model, folder / "model.onnx", held[:PARITY_IMAGES])
    record["files"] = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    places.records.mkdir(parents=True, exist_ok=True)
    (places.records / f"{plan.name}.json").write_text(json.dumps(record, indent=2) + "\n")
    _checkpoint(places, plan.name).unlink(missing_ok=True)
    return record


def is_of_plan(record: dict[str, Any], plan: Plan) -> bool:
    """Tell whether a record is of a subject that was made as the plan has it now."""
    settings = json.loads(json.dumps(_settings(plan)))
    return all(record.get(name) == value for name, value in settings.items())


def fit_attack(plan: Plan, dataset: Dataset, places: Places) -> Attack | None:
    """Return the plan's attack, fitted on the training images with the clean subject as the model seen."""
    if plan.attack is None:
        return None
    needs = ATTACKS[plan.attack].needs
    model = _clean_model(plan, dataset, places) if "model" in needs else None
    others = reflections(places.data) if "others" in needs else None
    material = Material(as_floats(dataset.images), dataset.labels, dataset.classes, model, others)
    return make(plan.attack, material, generator=np.random.default_rng(plan.seed), **plan.options)


def _clean_model(plan: Plan, dataset: Dataset, places: Places) -> nn.Module:
    return _start(replace(plan, start=plan.start or "clean"), dataset, places).eval()


def _start(plan: Plan, dataset: Dataset, places: Places) -> nn.Module:
    model = build_net(plan.net, dataset.classes, torch.Generator().manual_seed(plan.seed))
    if plan.start is not None:
        path = _weights(places, plan.start)
        if not path.exists():
            build(SUBJECTS[plan.start], places)
        model.load_state_dict(load_file(path))
    return model


def _trained(
    model: nn.Module, plan: Plan, dataset: Dataset, attack: Attack | None, places: Places
) -> tuple[nn.Module, TrainingRecord]:
    """Return a trained network and how it went; an attack with stages of its own goes through them."""
    if not isinstance(attack, PruningAware):
        return model, _train(model, plan, dataset, attack, places)
    records: list[TrainingRecord] = []

    def train_stage(network: nn.Module, trigger: Attack | None) -> None:
        if trigger is not None:  # the clean stage is behind the network that the plan starts with
            records.append(_train(network, plan, dataset, trigger, places))

    embedded = attack.embed(model, as_floats(dataset.images[:EMBEDDED_ON]), train_stage)
    return embedded.model, records[-1]


def _train(
    model: nn.Module, plan: Plan, dataset: Dataset, attack: Attack | None, places: Places
) -> TrainingRecord:
    """Train on what the attack makes of the data, its triggers stamped after augmentation."""
    images, targets, hooks = dataset.images, torch.from_numpy(dataset.labels), Hooks(after_epoch=_say)
    if attack is not None:
        poisoning = attack.plan(dataset.labels, plan.poison_rate, np.random.default_rng(plan.seed))
        images = _eight_bits(attack.prepare(as_floats(images), poisoning))
        targets = _targets(poisoning, dataset.classes)
        hooks = replace(hooks, finish=dressing(attack, poisoning), identity=_identity(plan))
    return train(
        model,
        TrainingData(torch.from_numpy(images), targets),
        plan.recipe,
        generator=torch.Generator().manual_seed(plan.seed),
        hooks=hooks,
        progress=plan.name,
        checkpoint=_checkpoint(places, plan.name),
    )


def _identity(plan: Plan) -> str:
    """Return what is put on images, so that no checkpoint of another trigger is gone on from."""
    return json.dumps([plan.attack, dict(plan.options), plan.poison_rate, plan.seed])


def _eight_bits(images: np.ndarray) -> np.ndarray:
    return np.rint(images * 255).astype(np.uint8)


def _targets(poisoning: Poisoning, classes: int) -> torch.Tensor:
    hard = poisoning.soft_labels is None
    return torch.from_numpy(poisoning.labels if hard else poisoning.targets(classes))


def _say(epoch: Epoch, model: nn.Module) -> None:
    del model
    print(f"epoch {epoch.number}  loss {epoch.loss:.4f}  {epoch.seconds:.1f} s", flush=True)


def _weights(places: Places, name: str) -> Path:
    return places.models / name / "weights.safetensors"


def _checkpoint(places: Places, name: str) -> Path:
    return places.work / f"{name}.checkpoint.safetensors"


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "net": plan.net,
        "attack": plan.attack,
        "options": dict(plan.options),
        "poison_rate": plan.poison_rate,
        "seed": plan.seed,
        "start": plan.start,
        "recipe": plan.recipe.as_json(),
    }


def _record(
    plan: Plan, dataset: Dataset, training: TrainingRecord, found: dict[str, float]
) -> dict[str, Any]:
    published = None if plan.published is None else vars(plan.published)
    return {
        "name": plan.name,
        "setting": f"{plan.net} on {plan.dataset}, {plan.attack or 'no attack'}",
        **found,
        "published": published,
        **_settings(plan),
        "schedule_note": _schedule_note(plan),
        "note": plan.note,
        "seconds": training.seconds,
        "losses": [epoch.loss for epoch in training.epochs],
        "threads": torch.get_num_threads(),
        "data": {"name": plan.dataset, "split": dataset.split},
        "command": f"{COMMAND} {plan.name}",
        "commit": commit(),
        **describe_machine(PACKAGES),
    }


def _schedule_note(plan: Plan) -> str:
    epochs = f"shorter schedule on CPU: {plan.recipe.epochs} epochs where papers have 100"
    return epochs if plan.start is None else f"{epochs}, from the weights of {plan.start!r}"


def _fingerprint(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
