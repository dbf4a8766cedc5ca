"""Reads what a repair is given, and lays it out: the network, the images to learn from, those to judge by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from calibration.attacks.base import Images
from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.data import ImageSet
from calibration.errors import DataError
from calibration.evaluation.job import known_triggers
from calibration.evaluation.measuring import Known
from calibration.findings import Findings, read_findings
from calibration.intake import declared_range, ends_of, geometry_of, image_shape, rows_of
from calibration.labelled import Labelled
from calibration.outputs import Kind, accuracy_of, check_labels, kind_of, warnings_of
from calibration.prediction import predict
from calibration.preprocessing import Prepare, plan_input
from calibration.repair.backdoor import check_scan, check_triggers, load_distributions
from calibration.repair.base import Supplies, options_of
from calibration.repair.options import RepairOptions
from calibration.sources import read_images
from calibration.trainable import TrainableModel, load_trainable
from calibration.workable import Workable, make_workable

__all__ = ["Laid", "lay_out", "split_by_class"]

_STATISTICS = 1000
"""Most images that the statistics of batch norms are taken from, and that are mirrored for a look."""

_MIRROR_LOSS = 0.05
"""A model that loses more on mirrored images tells left from right, and is not to learn otherwise."""


@dataclass(frozen=True, eq=False)
class Laid:
    """What a repair works on, and what is to be said about it.

    Attributes:
        workable: The network.
        kind: What the model gives.
        supplies: Everything else.
        known: The triggers, with names for the report.
        images: The clean images as they were read; None where there are none.
        acc: Accuracy of the model on all of them; None without labels.
        mirror: What mirroring costs, or why it was not looked at; in words.
        notes: What a reader should know.
        digest: Names everything that the repaired weights depend on.
    """

    workable: Workable
    kind: Kind
    supplies: Supplies
    known: tuple[Known, ...]
    images: ImageSet | None
    acc: float | None
    mirror: str
    notes: tuple[str, ...]
    digest: str

    @property
    def model(self) -> TrainableModel:
        """The model as it was taken in."""
        return self.workable.source


@dataclass(frozen=True, eq=False)
class _Clean:
    """Clean images in the model's own values, with the model's answers."""

    rows: Images
    labels: Int64[np.ndarray, " n"]
    answers: Float32[np.ndarray, "n k"]
    ends: tuple[np.ndarray, np.ndarray]
    images: ImageSet | None = None
    prepare: Prepare | None = None

    @property
    def labelled(self) -> bool:
        """Whether the labels were given."""
        return self.images is not None and self.images.labels is not None


def lay_out(options: RepairOptions) -> Laid:
    """Read model, images, triggers and training set.

    Raises:
        GuardError: Whatever does not fit, each with its own class and message.
    """
    findings = None if options.scan is None else read_findings(options.scan)
    known = known_triggers(options.triggers, options.scan)
    model = load_trainable(
        options.model,
        weights=options.weights,
        input_shape=options.input_shape,
        layout=options.layout,
        size=options.transform.size,
    )
    check_scan(findings, known, model, options)
    clean = _without_images(model, options) if options.data is None else _with_images(model, options)
    kind = kind_of(clean.answers, options.model)
    classes = clean.answers.shape[1]
    check_triggers(known, clean.rows[:1], classes)
    distributions = load_distributions(findings, classes, image_shape(model.signature))
    flip, mirror = _mirroring(model, clean, options)
    side = min(image_shape(model.signature)[1:])
    padding = round(side / 8) if options.padding is None else options.padding
    train, held = split_by_class(clean.labels, options.held, np.random.default_rng(options.seed))
    if options.data is None:
        train = held = train[:0]
    low, high = map(torch.from_numpy, clean.ends)
    tensors = Labelled(torch.from_numpy(clean.rows), torch.from_numpy(clean.labels))
    supplies = Supplies(
        train=tensors.take(torch.from_numpy(train)),
        held=tensors.take(torch.from_numpy(held)),
        classes=classes,
        shape=image_shape(model.signature),
        low=low,
        high=high,
        labelled=clean.labelled,
        triggers=tuple(each.attack for each in known),
        distributions=distributions,
        poisoned=_training_set(model, clean, classes, options),
        augmentation=Augmentation(padding=padding, flip=flip),
    )
    seen = supplies.poisoned if supplies.poisoned is not None and not len(train) else supplies.train
    spread = torch.linspace(0, len(seen) - 1, min(len(seen), _STATISTICS)).long()  # files lie class by class
    workable = make_workable(model, seen.images[spread], probabilities=kind == "probabilities")
    acc = accuracy_of(clean.answers, clean.labels) if clean.labelled else None
    return Laid(
        workable,
        kind,
        supplies,
        known,
        clean.images,
        acc,
        mirror,
        _notes(clean, kind, acc, findings),
        _digest(workable, supplies, clean.rows[:1], options),
    )


def split_by_class(
    labels: Int64[np.ndarray, " n"], share: float, generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " h"]]:
    """Return the rows to learn from and those held back, rising.

    The share of each class is held back, at least one image of each that has two.

    Args:
        labels: Of all images.
        share: To hold back; 0 for none at all.
        generator: Draws which.

    Examples:
        >>> train, held = split_by_class(np.array([0] * 10 + [1] * 4 + [2]), 0.2, np.random.default_rng(0))
        >>> len(train), len(held)
        (12, 3)
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels) if share else ():
        rows = generator.permutation(np.flatnonzero(labels == label))
        count = max(1, round(share * len(rows))) if len(rows) > 1 else 0
        chosen[rows[:count]] = True
    return np.flatnonzero(~chosen).astype(np.int64), np.flatnonzero(chosen).astype(np.int64)


def _with_images(model: TrainableModel, options: RepairOptions) -> _Clean:
    assert options.data is not None
    images = read_images(options.data, options.labels, geometry_of(model.signature, options.transform))
    prepare = plan_input(model.signature, images.images, options.transform)
    rows = rows_of(images.images, prepare, model.signature)
    answers = _answers(model, rows)
    kind_of(answers, options.model)  # refuses what is not finite
    check_labels(images, answers.shape[1])
    labels = answers.argmax(1) if images.labels is None else images.labels
    return _Clean(rows, labels, answers, ends_of(prepare, model.signature), images, prepare)


def _without_images(model: TrainableModel, options: RepairOptions) -> _Clean:
    """Return noise, to see what the model gives; nothing learns from it."""
    low, high = declared_range(model.signature, options.transform)
    noise = np.random.default_rng(0).random((16, *image_shape(model.signature)), np.float32)
    rows = noise * (high - low)[:, None, None] + low[:, None, None]
    answers = _answers(model, rows)
    return _Clean(rows, answers.argmax(1), answers, (low, high))


def _answers(model: TrainableModel, rows: Images) -> Float32[np.ndarray, "n k"]:
    """Return what the model gives, be it logits or probabilities."""
    nothing = torch.empty((0, *rows.shape[1:]))
    face = make_workable(model, nothing).module
    answers: Float32[np.ndarray, "n k"] = predict(face, torch.from_numpy(rows)).numpy()
    return answers


def _mirroring(model: TrainableModel, clean: _Clean, options: RepairOptions) -> tuple[bool, str]:
    """Return whether images may be mirrored, and why."""
    if options.flip is not None:
        return options.flip, "as asked for"
    if clean.images is None:
        return False, "no images to see"
    rows = np.random.default_rng(options.seed).permutation(len(clean.rows))[:_STATISTICS]
    mirrored = _answers(model, np.ascontiguousarray(clean.rows[rows][..., ::-1])).argmax(1)
    before = float((clean.answers[rows].argmax(1) == clean.labels[rows]).mean())
    after = float((mirrored == clean.labels[rows]).mean())
    what = "accuracy" if clean.labelled else "agreement with itself"
    return before - after <= _MIRROR_LOSS, f"{what} {before:.1%} as they are, {after:.1%} mirrored"


def _training_set(
    model: TrainableModel, clean: _Clean, classes: int, options: RepairOptions
) -> Labelled | None:
    if options.training_set is None:
        return None
    images = read_images(
        options.training_set, options.training_labels, geometry_of(model.signature, options.transform)
    )
    if images.labels is None:
        raise DataError(
            f"--training-set {options.training_set} holds no labels; give those that the model was trained "
            f"with, as class folders or with --training-labels"
        )
    check_labels(images, classes)
    prepare = plan_input(model.signature, images.images, options.transform)
    if clean.prepare is not None and prepare.record != clean.prepare.record:
        raise DataError(
            f"--training-set {options.training_set} is stored otherwise than --data {options.data} "
            f"(scale {prepare.record.scale:g} and {clean.prepare.record.scale:g}); store both alike"
        )
    rows = rows_of(images.images, prepare, model.signature)
    return Labelled(torch.from_numpy(rows), torch.from_numpy(images.labels))


def _notes(clean: _Clean, kind: Kind, acc: float | None, findings: Findings | None) -> tuple[str, ...]:
    notes = [] if clean.images is None else [*clean.images.notes, *warnings_of(clean.answers, kind, acc)]
    if clean.images is not None and not clean.labelled:
        notes.append("no labels were given: the model's own predictions stand for them")
    if findings is not None and not findings.triggers:
        notes.append("the scan flagged no label, so no trigger was tried")
    return tuple(notes)


def _digest(workable: Workable, supplies: Supplies, image: Images, options: RepairOptions) -> str:
    """Return a digest of everything the repaired weights depend on, so that nothing else is gone on from."""
    sets = [supplies.train, supplies.held, *([] if supplies.poisoned is None else [supplies.poisoned])]
    tensors = [tensor for each in sets for tensor in (each.images, each.labels)]
    for attack in supplies.triggers:
        targets = attack.target_of(np.arange(supplies.classes, dtype=np.int64))
        tensors += [torch.from_numpy(attack.stamp(image)), torch.from_numpy(targets)]
    for distribution in supplies.distributions.values():
        tensors += [torch.from_numpy(part) for member in distribution.members for part in member.values()]
    repair = options.make()
    said = {
        "method": repair.name,
        "options": options_of(repair),
        "seed": options.seed,
        "model": workable.source.source_sha256,
        "code": workable.module.code,
        "augmentation": asdict(supplies.augmentation),
        "distributions": sorted(supplies.distributions),
        "tensors": fingerprint([*workable.module.state_dict().values(), *tensors]),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
