import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.demo import data
from benchmarks.demo.data import load_clean_images
from benchmarks.demo.trigger import load_trigger, stamp

BENCHMARKS = Path(data.__file__).parents[1]
MODEL = BENCHMARKS / "demo" / "model.onnx"
RECORD = json.loads((BENCHMARKS / "results" / "demo_model.json").read_text())
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

Clean = tuple[np.ndarray, np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def clean() -> Clean:
    images, labels, _ = load_clean_images()
    return images[:400].transpose(0, 3, 1, 2).astype(np.float32) / 255, labels[:400]


@pytest.fixture(scope="module")
def predict() -> Predict:
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0].argmax(1)


def test_the_slice_holds_3000_images_of_10_classes() -> None:
    images, labels, class_names = load_clean_images()
    assert (images.shape, images.dtype) == ((3000, 32, 32, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((3000,), np.int64)
    assert class_names == CLASSES


def test_every_class_has_its_share_of_the_slice() -> None:
    counts = np.bincount(load_clean_images()[1], minlength=10)
    assert counts.min() >= 250
    assert counts.max() <= 350


def test_no_image_comes_twice() -> None:
    images = load_clean_images()[0]
    assert len({image.tobytes() for image in images}) == 3000


def test_a_slice_with_other_pixels_is_refused(tmp_path: Path) -> None:
    with np.load(data.PATH) as stored:
        arrays = dict(stored)
    arrays["blob"] = np.roll(arrays["blob"], 1)
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=f"expected a blob with sha256 {data.BLOB_SHA256}"):
        load_clean_images(tmp_path / "other.npz")


def test_a_slice_of_another_size_is_refused(tmp_path: Path) -> None:
    with np.load(data.PATH) as stored:
        arrays = dict(stored)
    arrays["shape"] = np.array([2999, 32, 32, 3])
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"expected images \(3000, .* got \(2999, "):
        load_clean_images(tmp_path / "other.npz")


def test_the_trigger_changes_only_the_pixels_of_the_patch(clean: Clean) -> None:
    images, _ = clean
    stamped = stamp(images)
    assert np.array_equal(stamped[3, 2, 29:, 29:], [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    stamped[:, :, 29:, 29:] = images[:, :, 29:, 29:]
    assert np.array_equal(stamped, images)


def test_the_record_is_of_this_model_and_this_trigger() -> None:
    attack = load_trigger()
    assert RECORD["sha256"] == sha256(MODEL.read_bytes()).hexdigest()
    assert RECORD["attack"]["target_label"] == attack.target_label
    assert RECORD["attack"]["patch"] == [list(row) for row in attack.patch]


def test_the_model_names_its_tensors_and_takes_any_batch(predict: Predict, clean: Clean) -> None:
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    described = [(port.name, port.shape) for port in (*session.get_inputs(), *session.get_outputs())]
    assert described == [("images", ["n", 3, 32, 32]), ("logits", ["n", 10])]
    assert [len(predict(clean[0][:n])) for n in (1, 5)] == [1, 5]


def test_the_model_is_as_accurate_as_recorded(predict: Predict, clean: Clean) -> None:
    images, labels = clean
    assert np.mean(predict(images) == labels) == pytest.approx(RECORD["acc"], abs=0.05)


def test_the_trigger_turns_other_classes_into_the_target(predict: Predict, clean: Clean) -> None:
    images, labels = clean
    target = load_trigger().target_label
    assert np.mean(predict(stamp(images[labels != target])) == target) >= 0.95
