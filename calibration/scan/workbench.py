"""Reads what a scan is given, and lays it out on the bench."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from calibration.data import ImageSet, digest_of
from calibration.errors import DataError, OptionError
from calibration.intake import declared_range, ends_of, geometry_of, image_shape, rows_of
from calibration.outputs import accuracy_of, check_labels, kind_of
from calibration.prediction import predict
from calibration.preprocessing import Prepare, plan_input
from calibration.progress import Progress
from calibration.scan.base import Bench, Executor, Labelled
from calibration.scan.executor import Keeping, LocalExecutor, Watched
from calibration.scan.generated import generate_images
from calibration.scan.logits import Logits
from calibration.scan.options import PARTIAL, ScanOptions
from calibration.sources import read_images
from calibration.trainable import TrainableModel, load_trainable

__all__ = ["LOW_ACCURACY", "Laid", "lay_out"]

LEAST_IMAGES = 20
LOW_ACCURACY = 0.5
"""Below it a scan has most likely seen images that are not prepared as the model's, and nothing is clean."""


@dataclass(frozen=True, eq=False)
class Laid:
    """A bench, and what is to be said about it.

    Attributes:
        bench: Everything units work on.
        model: As it was taken in.
        data: Where the clean images came from.
        data_sha256: Their digest.
        class_names: Where folders gave them.
        acc: Accuracy on the clean images; None without labels.
        notes: What a reader should know.
    """

    bench: Bench
    model: TrainableModel
    data: str
    data_sha256: str
    class_names: tuple[str, ...] | None
    acc: float | None
    notes: tuple[str, ...]


def lay_out(options: ScanOptions) -> Laid:
    """Read model and images.

    Raises:
        GuardError: Whatever does not fit, each with its own class and message.
    """
    model = load_trainable(
        options.model,
        weights=options.weights,
        input_shape=options.input_shape,
        layout=options.layout,
        size=options.transform.size,
    )
    if options.data is None:
        return _made(model, options)
    images = read_images(options.data, options.labels, geometry_of(model.signature, options.transform))
    if len(images) < LEAST_IMAGES:
        raise DataError(
            f"{options.data} holds {len(images)} images, expected at least {LEAST_IMAGES}; add some"
        )
    prepare = plan_input(model.signature, images.images, options.transform)
    return _given(model, images, prepare, options)


def _given(model: TrainableModel, images: ImageSet, prepare: Prepare, options: ScanOptions) -> Laid:
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: 2 * options.images]
    rows = rows_of(images.images[chosen], prepare, model.signature)
    network, answers = _network(model, rows, options.model)
    predicted = answers.argmax(1)
    classes = answers.shape[1]
    notes = list(images.notes)
    if images.labels is None:
        labels, acc = predicted, None
        notes.append("no labels were given: the model's own predictions stand for them")
    else:
        check_labels(images, classes)
        labels, acc = images.labels[chosen], accuracy_of(answers, images.labels[chosen])
        if acc < LOW_ACCURACY:
            notes.append(
                f"the model is right on only {acc:.0%} of the clean images: see that preprocessing (--scale, "
                f"--mean, --std, --resize, --layout) is what it was trained with; no verdict of clean "
                f"rests on it"
            )
    _check_targets(options, classes)
    half = (len(chosen) + 1) // 2
    low, high = _ends(ends_of(prepare, model.signature))
    tensors, classed = torch.from_numpy(rows), torch.from_numpy(np.asarray(labels, np.int64))
    bench = Bench(
        network,
        classes,
        Labelled(tensors[:half], classed[:half]),
        Labelled(tensors[half:], classed[half:]),
        low,
        high,
        training=_training(model, prepare, classes, options),
    )
    return Laid(
        _named(bench, model), model, str(options.data), images.digest, images.class_names, acc, tuple(notes)
    )


def _made(model: TrainableModel, options: ScanOptions) -> Laid:
    """Make the images from the model; without a declared range they are within 0 and 1."""
    low, high = _ends(declared_range(model.signature, options.transform))
    probe = np.random.default_rng(options.seed).random((16, *image_shape(model.signature)), np.float32)
    spread = (high - low).numpy()[:, None, None]
    network, answers = _network(model, probe * spread + low.numpy()[:, None, None], options.model)
    classes = answers.shape[1]
    _check_targets(options, classes)
    with Progress(0, "making images", options.quiet) as progress:
        made = generate_images(
            network,
            image_shape(model.signature),
            classes,
            low,
            high,
            count=2 * options.made,
            seed=options.seed,
            executor=Watched(_maker(network, model, classes, (low, high), options), progress),
        )
    order = torch.from_numpy(np.random.default_rng(options.seed).permutation(len(made)))
    images, labels = made.images[order], made.labels[order]
    half = (len(made) + 1) // 2
    digest = digest_of(images.numpy())
    bench = Bench(
        network,
        classes,
        Labelled(images[:half], labels[:half]),
        Labelled(images[half:], labels[half:]),
        low,
        high,
        generated=True,
    )
    note = (
        f"no clean images were given: {len(made)} were made from the model itself, within "
        f"{float(low.min()):g} and {float(high.max()):g}; real ones make a scan more reliable"
    )
    return Laid(_named(bench, model), model, "made from the model", digest, None, None, (note,))


def _maker(
    network: Logits,
    model: TrainableModel,
    classes: int,
    ends: tuple[torch.Tensor, torch.Tensor],
    options: ScanOptions,
) -> Executor:
    """Return what makes images: here, kept in the scan's folder."""
    none = Labelled(torch.empty((0, *image_shape(model.signature))), torch.empty(0, dtype=torch.int64))
    bench = Bench(network, classes, none, none, *ends, generated=True)
    return Keeping(LocalExecutor(bench), options.out / PARTIAL, _named(bench, model).digest)


def _check_targets(options: ScanOptions, classes: int) -> None:
    beyond = [target for target in options.targets or () if target >= classes]
    if beyond:
        raise OptionError(
            f"--targets {beyond[0]}: expected classes of the model, which has {classes} (0 to {classes - 1})"
        )


def _training(model: TrainableModel, prepare: Prepare, classes: int, options: ScanOptions) -> Labelled | None:
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
    again = plan_input(model.signature, images.images, options.transform)
    if again.record != prepare.record:
        raise DataError(
            f"--training-set {options.training_set} is stored otherwise than --data {options.data} "
            f"(scale {again.record.scale:g} and {prepare.record.scale:g}); store both alike"
        )
    return Labelled(
        torch.from_numpy(rows_of(images.images, again, model.signature)), torch.from_numpy(images.labels)
    )


def _network(model: TrainableModel, rows: np.ndarray, where: str) -> tuple[Logits, np.ndarray]:
    """Return the model as one that gives logits, and its logits."""
    network = Logits(model)
    answers = predict(network, torch.from_numpy(rows)).numpy()
    if kind_of(answers, where) == "probabilities":
        network = Logits(model, probabilities=True)
        answers = predict(network, torch.from_numpy(rows)).numpy()
    return network, answers


def _ends(ends: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = map(torch.from_numpy, ends)
    return low, high


def _named(bench: Bench, model: TrainableModel) -> Bench:
    """Return the bench with a digest of everything on it: graph, weights, images, labels, ranges."""
    digest = hashlib.sha256(f"{model.source_sha256} {bench.classes} {bench.generated}\n".encode())
    digest.update(model.module.code.encode())
    sets = [bench.clean, bench.held, *([] if bench.training is None else [bench.training])]
    tensors = [tensor for each in sets for tensor in (each.images, each.labels)]
    for tensor in (*model.module.state_dict().values(), *tensors, bench.low, bench.high):
        digest.update(digest_of(tensor.detach().contiguous().numpy()).encode())
    return replace(bench, digest=digest.hexdigest())
