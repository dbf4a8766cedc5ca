"""What lies on the bench, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import DataError, OptionError  # noqa: E402
from calibration.preprocessing import Transform  # noqa: E402
from calibration.scan.workbench import lay_out  # noqa: E402
from guard.errors import GuardError  # noqa: E402
from tests.calibration.scan_files import SHAPE, answers, images_of, options_for, write  # noqa: E402
from tests.tiny_models import linear_classifier, linear_weights, not_a_number_classifier  # noqa: E402


def logits_of(rows: np.ndarray, classes: int = 10) -> np.ndarray:
    weight, bias = linear_weights(SHAPE, classes)
    return rows.reshape(len(rows), -1) @ weight + bias


def test_images_are_parted_into_those_searched_on_and_those_that_judge(tmp_path: Path) -> None:
    laid = lay_out(options_for(tmp_path, images=20))
    stored = images_of().transpose(0, 3, 1, 2).astype(np.float32) / 255
    rows = np.concatenate([laid.bench.clean.images.numpy(), laid.bench.held.images.numpy()])
    places = [int(np.abs(stored - row).sum((1, 2, 3)).argmin()) for row in rows]
    assert (len(laid.bench.clean), len(laid.bench.held)) == (20, 20)
    assert len(set(places)) == 40
    np.testing.assert_allclose(rows, stored[places], atol=1e-6)
    labels = np.concatenate([laid.bench.clean.labels.numpy(), laid.bench.held.labels.numpy()])
    assert np.array_equal(labels, answers(images_of())[places])
    assert (laid.acc, laid.notes, laid.bench.classes) == (1.0, (), 10)
    assert laid.bench.low.tolist() == [0, 0, 0]
    assert laid.bench.high.tolist() == [1, 1, 1]


def test_preprocessing_sets_the_range_of_each_channel(tmp_path: Path) -> None:
    laid = lay_out(options_for(tmp_path, transform=Transform(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.1))))
    np.testing.assert_allclose(laid.bench.low.numpy(), (-1, -1.6, -3), rtol=1e-5)
    np.testing.assert_allclose(laid.bench.high.numpy(), (1, 2.4, 7), rtol=1e-5)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
@pytest.mark.parametrize("softmax", [False, True])
def test_any_model_becomes_one_of_logits_of_float_images_channels_first(
    tmp_path: Path, layout: str, datatype: str, softmax: bool
) -> None:
    model = linear_classifier(SHAPE, layout=layout, datatype=datatype, softmax=softmax)
    bench = lay_out(options_for(tmp_path, model)).bench
    images = bench.clean.images.clone().requires_grad_()
    logits = bench.model(images)
    expected = logits_of(bench.clean.images.numpy() / (255 if datatype == "UINT8" else 1))
    if softmax:
        expected = expected - np.log(np.exp(expected).sum(1, keepdims=True))
        near = expected > -20
        np.testing.assert_allclose(logits.detach().numpy()[near], expected[near], rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    logits.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert bench.shape == SHAPE
    assert bench.high.tolist() == [255.0 if datatype == "UINT8" else 1.0] * 3


def test_a_model_of_half_precision_is_scanned_too(tmp_path: Path) -> None:
    bench = lay_out(options_for(tmp_path, linear_classifier(SHAPE, datatype="FP16"))).bench
    logits = bench.model(bench.clean.images)
    assert logits.dtype == torch.float32
    assert (logits.argmax(1) == bench.clean.labels).float().mean() > 0.9


def test_without_labels_the_models_own_answers_stand_for_them_and_a_note_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    np.savez(tmp_path / "bare.npz", images=images_of())
    laid = lay_out(options_for(tmp_path, data=tmp_path / "bare.npz"))
    assert laid.acc is None
    assert torch.equal(laid.bench.clean.labels, laid.bench.model(laid.bench.clean.images).argmax(1))
    assert laid.notes == ("no labels were given: the model's own predictions stand for them",)


def test_low_accuracy_points_to_the_preprocessing(tmp_path: Path) -> None:
    laid = lay_out(options_for(tmp_path, transform=Transform(mean=(3.0,))))
    assert laid.acc is not None
    assert laid.acc < 0.5
    assert len(laid.notes) == 1
    assert "see that preprocessing (--scale, --mean, --std, --resize, --layout)" in laid.notes[0]


def test_without_images_some_are_made_from_the_model_within_its_declared_range(tmp_path: Path) -> None:
    laid = lay_out(options_for(tmp_path, data=None, made=20, transform=Transform(mean=(0.5,), std=(0.5,))))
    images = torch.cat([laid.bench.clean.images, laid.bench.held.images])
    assert (len(laid.bench.clean), len(laid.bench.held), laid.bench.generated) == (20, 20, True)
    assert images.min() >= -1
    assert images.max() <= 1
    labels = torch.cat([laid.bench.clean.labels, laid.bench.held.labels])
    assert torch.bincount(labels, minlength=10).tolist() == [4] * 10
    assert laid.notes[0].startswith(
        "no clean images were given: 40 were made from the model itself, within -1"
    )


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ({"images": images_of(12)}, {}, "holds 12 images, expected at least 20; add some"),
        (
            {"images": images_of(), "labels": np.arange(60)},
            {},
            "has label .*, the model has 10 classes \\(0 to 9\\)",
        ),
        ({"images": images_of(), "labels": np.zeros(9, int)}, {}, "9 labels for 60 images"),
        ({"images": np.zeros((30, 9, 9, 3), np.uint8)}, {}, "pass --resize 8 8"),
        ({"images": np.zeros((30, 8, 8), np.uint8)}, {}, "images"),
        (
            None,
            {"targets": (0, 10)},
            "--targets 10: expected classes of the model, which has 10 \\(0 to 9\\)",
        ),
        (None, {"data": Path("gone.npz")}, "gone.npz is not there"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray] | None, changes: dict[str, Any], message: str
) -> None:
    options = options_for(tmp_path, **changes)
    if arrays is not None:
        np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises((DataError, OptionError), match=message):
        lay_out(options)


def test_a_model_that_answers_with_no_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="differ from ONNX Runtime's by nan"):
        lay_out(options_for(tmp_path, not_a_number_classifier(SHAPE)))


def test_a_training_set_lies_beside_the_clean_images_prepared_alike(tmp_path: Path) -> None:
    write(tmp_path)
    train = images_of(30, seed=8)
    np.savez(tmp_path / "train.npz", images=train, labels=np.arange(30) % 10)
    bench = lay_out(options_for(tmp_path, training_set=tmp_path / "train.npz", scanners=None)).bench
    assert bench.training is not None
    np.testing.assert_allclose(
        bench.training.images.numpy(), train.transpose(0, 3, 1, 2).astype(np.float32) / 255, atol=1e-6
    )
    assert bench.training.labels.tolist() == [row % 10 for row in range(30)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": images_of(30)}, "holds no labels; give those that the model was trained with"),
        (
            {"images": images_of(30).astype(np.float32) / 255, "labels": np.zeros(30, int)},
            "is stored otherwise than --data",
        ),
        ({"images": images_of(30), "labels": np.full(30, 12)}, "has label 12"),
    ],
)
def test_a_training_set_that_does_not_fit_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DataError, match=message):
        lay_out(options_for(tmp_path, training_set=tmp_path / "train.npz", scanners=None))


def digest(folder: Path, **changes: Any) -> str:
    return lay_out(options_for(folder, **changes)).bench.digest


def test_the_digest_is_another_for_other_weights_images_labels_ranges_or_training_sets(
    tmp_path: Path,
) -> None:
    same = digest(tmp_path)
    assert digest(tmp_path) == same
    images = images_of()
    np.savez(tmp_path / "other.npz", images=images_of(seed=6), labels=answers(images))
    np.savez(tmp_path / "relabelled.npz", images=images, labels=(answers(images) + 1) % 10)
    train = tmp_path / "train.npz"
    np.savez(train, images=images, labels=answers(images))
    others = [
        digest(tmp_path, data=tmp_path / "other.npz"),
        digest(tmp_path, data=tmp_path / "relabelled.npz"),
        digest(tmp_path, transform=Transform(mean=(0.5,))),
        digest(tmp_path, seed=1),
        lay_out(options_for(tmp_path, linear_classifier(SHAPE, seed=1))).bench.digest,
        digest(tmp_path, training_set=train, scanners=None),
    ]
    np.savez(train, images=images, labels=(answers(images) + 1) % 10)
    others.append(digest(tmp_path, training_set=train, scanners=None))
    assert len({same, *others}) == len(others) + 1
