"""Reads what a scan is given, and lays it out on the bench."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from calibration.data import Geometry, ImageSet, digest_of
from calibration.errors import DataError, OptionError
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
        size=options.transform.resize,
    )
    if options.data is None:
        return _made(model, options)
    images = read_images(options.data, options.labels, _geometry(model, options))
    if len(images) < LEAST_IMAGES:
        raise DataError(
            f"{options.data} holds {len(images)} images, expected at least {LEAST_IMAGES}; add some"
        )
    prepare = plan_input(model.signature, images.images, options.transform)
    return _given(model, images, prepare, options)


def _given(model: TrainableModel, images: ImageSet, prepare: Prepare, options: ScanOptions) -> Laid:
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: 2 * options.images]
    rows = _rows(images.images[chosen], prepare, model)
    network, answers = _network(model, rows, options.model)
    predicted = answers.argmax(1)
    classes = answers.shape[1]
    notes = list(images.notes)
    if images.labels is None:
        labels, acc = predicted, None
        notes.append("no labels were given: the model's own predictions stand for them")
    else:
        check_labels(images.labels, classes)
        labels, acc = images.labels[chosen], accuracy_of(answers, images.labels[chosen])
        if acc < LOW_ACCURACY:
            notes.append(
                f"the model is right on only {acc:.0%} of the clean images: see that preprocessing (--scale, "
                f"--mean, --std, --resize, --layout) is what it was trained with; no verdict of clean "
                f"rests on it"
            )
    _check_targets(options, classes)
    half = (len(chosen) + 1) // 2
    low, high = (_ends(ends, rows.shape[1]) for ends in (prepare.source.low, prepare.source.high))
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
    low, high = _declared_range(model, options)
    probe = np.random.default_rng(options.seed).random((16, *_shape(model)), np.float32)
    spread = (high - low).numpy()[:, None, None]
    network, answers = _network(model, probe * spread + low.numpy()[:, None, None], options.model)
    classes = answers.shape[1]
    _check_targets(options, classes)
    with Progress(0, "making images", options.quiet) as progress:
        made = generate_images(
            network,
            _shape(model),
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
    none = Labelled(torch.empty((0, *_shape(model))), torch.empty(0, dtype=torch.int64))
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
    images = read_images(options.training_set, options.training_labels, _geometry(model, options))
    if images.labels is None:
        raise DataError(
            f"--training-set {options.training_set} holds no labels; give those that the model was trained "
            f"with, as class folders or with --training-labels"
        )
    check_labels(images.labels, classes)
    again = plan_input(model.signature, images.images, options.transform)
    if again.record != prepare.record:
        raise DataError(
            f"--training-set {options.training_set} is stored otherwise than --data {options.data} "
            f"(scale {again.record.scale:g} and {prepare.record.scale:g}); store both alike"
        )
    return Labelled(torch.from_numpy(_rows(images.images, again, model)), torch.from_numpy(images.labels))


def _network(model: TrainableModel, rows: np.ndarray, where: str) -> tuple[Logits, np.ndarray]:
    """Return the model as one that gives logits, and its logits."""
    network = Logits(model)
    answers = predict(network, torch.from_numpy(rows)).numpy()
    if kind_of(answers, where) == "probabilities":
        network = Logits(model, probabilities=True)
        answers = predict(network, torch.from_numpy(rows)).numpy()
    return network, answers


def _rows(images: np.ndarray, prepare: Prepare, model: TrainableModel) -> np.ndarray:
    """Return images as the model takes them, float32, channels first."""
    rows = prepare(images).astype(np.float32)
    first = rows if model.signature.layout == "NCHW" else rows.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(first)


def _shape(model: TrainableModel) -> tuple[int, int, int]:
    first, second, third = model.signature.shape
    return (first, second, third) if model.signature.layout == "NCHW" else (third, first, second)


def _geometry(model: TrainableModel, options: ScanOptions) -> Geometry:
    channels, height, width = _shape(model)
    return Geometry(
        channels,
        (height, width),
        channels_first=model.signature.layout == "NCHW",
        resize=options.transform.resize is not None,
    )


def _declared_range(model: TrainableModel, options: ScanOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the range that a tiny stored image, black and white, would have after preprocessing."""
    channels, height, width = _shape(model)
    eight_bits = model.signature.datatype == "UINT8"
    ends = np.zeros((2, height, width, channels), np.uint8 if eight_bits else np.float32)
    ends[1] = 255 if eight_bits else 1
    prepare = plan_input(model.signature, ends, options.transform)
    return _ends(prepare.source.low, channels), _ends(prepare.source.high, channels)


def _ends(values: tuple[float, ...], channels: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).expand(channels).clone()


def _named(bench: Bench, model: TrainableModel) -> Bench:
    """Return the bench with a digest of everything on it: graph, weights, images, labels, ranges."""
    digest = hashlib.sha256(f"{model.source_sha256} {bench.classes} {bench.generated}\n".encode())
    digest.update(model.module.code.encode())
    sets = [bench.clean, bench.held, *([] if bench.training is None else [bench.training])]
    tensors = [tensor for each in sets for tensor in (each.images, each.labels)]
    for tensor in (*model.module.state_dict().values(), *tensors, bench.low, bench.high):
        digest.update(digest_of(tensor.detach().contiguous().numpy()).encode())
    return replace(bench, digest=digest.hexdigest())
