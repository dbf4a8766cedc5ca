"""Images and labels as they lie on disk, and every way in which they may not fit."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.data import Geometry, digest_of
from calibration.errors import DataError, OptionError
from calibration.sources import read_images
from guard.errors import GuardError, UnsafeArrayError

RGB = Geometry(channels=3, size=(6, 5), channels_first=True, resize=False)
GRAY = Geometry(channels=1, size=(6, 5), channels_first=True, resize=False)


def pixels(n: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 5, channels), dtype=np.uint8)


def save(path: Path, image: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path, **options)


@pytest.mark.parametrize("order", ["n h w c", "n c h w"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16])
def test_an_npz_is_read_in_either_axis_order_and_keeps_its_values(
    tmp_path: Path, order: str, dtype: type
) -> None:
    images = pixels() if dtype is np.uint8 else (pixels() / 255).astype(dtype)
    stored = images if order == "n h w c" else images.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "d.npz", images=stored, labels=np.arange(4))
    read = read_images(tmp_path / "d.npz", None, RGB)
    assert read.images.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
    np.testing.assert_array_equal(read.images, images.astype(read.images.dtype))
    assert read.labels is not None
    assert read.labels.tolist() == [0, 1, 2, 3]
    assert read.digest == digest_of(stored)
    assert len(read) == 4


def test_images_without_a_channel_axis_are_grayscale(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pixels(channels=1)[..., 0])
    read = read_images(tmp_path / "images.npy", None, GRAY)
    np.testing.assert_array_equal(read.images, pixels(channels=1))
    assert read.labels is None


def test_a_pair_of_npy_files_is_read_by_flag_or_by_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pixels())
    np.save(tmp_path / "labels.npy", np.array([[3], [2], [1], [0]], np.uint8))
    by_flag = read_images(tmp_path / "images.npy", tmp_path / "labels.npy", RGB)
    by_folder = read_images(tmp_path, None, RGB)
    assert by_flag.labels is not None
    assert by_folder.labels is not None
    assert by_flag.labels.tolist() == by_folder.labels.tolist() == [3, 2, 1, 0]
    assert by_flag.digest == by_folder.digest


def test_labels_given_win_over_those_of_the_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=pixels(), labels=np.arange(4))
    np.save(tmp_path / "l.npy", np.array([7, 7, 7, 7]))
    read = read_images(tmp_path / "d.npz", tmp_path / "l.npy", RGB)
    assert read.labels is not None
    assert read.labels.tolist() == [7, 7, 7, 7]


def test_class_folders_give_labels_in_sorted_order_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    images = pixels(5)
    for row, name in enumerate(["dog/2.png", "dog/1.bmp", "cat/b.webp", "cat/a.ppm", "owl/x.PNG"]):
        save(tmp_path / name, images[row], **({"lossless": True} if name.endswith("webp") else {}))
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"not an image")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    read = read_images(tmp_path, None, RGB)
    assert read.class_names == ("cat", "dog", "owl")
    assert read.labels is not None
    assert read.labels.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(read.images, images[[3, 2, 1, 0, 4]])


def test_class_folders_named_by_numbers_are_their_own_labels(tmp_path: Path) -> None:
    for row, name in enumerate(["10", "2", "00007"]):
        save(tmp_path / name / "a.png", pixels(3)[row])
    read = read_images(tmp_path, None, RGB)
    assert read.labels is not None
    assert dict(zip(read.class_names or (), read.labels.tolist(), strict=True)) == {
        "00007": 7,
        "10": 10,
        "2": 2,
    }


def test_labels_are_known_by_the_file_or_folder_that_they_are_from(tmp_path: Path) -> None:
    indices = np.arange(4)
    np.savez(tmp_path / "d.npz", images=pixels(), labels=indices)
    (tmp_path / "pair").mkdir()
    np.save(tmp_path / "pair/images.npy", pixels())
    np.save(tmp_path / "pair/labels.npy", indices)
    save(tmp_path / "folder/cat/a.png", pixels()[0])

    def labels_from(data: str, labels: str | None = None) -> str:
        given = None if labels is None else tmp_path / labels
        return read_images(tmp_path / data, given, RGB).labels_from.replace(f"{tmp_path}/", "")

    assert labels_from("d.npz") == "d.npz: labels"
    assert labels_from("pair") == "pair/labels.npy"
    assert labels_from("pair/images.npy") == ""
    assert labels_from("d.npz", "pair/labels.npy") == "pair/labels.npy"
    assert labels_from("folder") == "folder: sub-folders as classes"
    assert labels_from("folder/cat") == ""


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for row, image in enumerate(pixels(3)):
        save(tmp_path / f"{row}.png", image)
    read = read_images(tmp_path, None, RGB)
    assert read.labels is None
    assert read.class_names is None
    np.testing.assert_array_equal(read.images, pixels(3))


def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", pixels()[0])
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(read_images(tmp_path, None, RGB).images[0], expected)


def test_grayscale_files_for_an_rgb_model_are_repeated_and_noted(tmp_path: Path) -> None:
    gray = pixels(1, channels=1)[0]
    save(tmp_path / "a.png", gray)
    save(tmp_path / "b.png", pixels()[0])
    read = read_images(tmp_path, None, RGB)
    np.testing.assert_array_equal(read.images[0], np.repeat(gray, 3, axis=2))
    assert read.notes == ("1 of 2 files are grayscale; their channel was repeated to 3",)


def test_grayscale_files_fit_a_model_of_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(1, channels=1)[0])
    read = read_images(tmp_path, None, GRAY)
    np.testing.assert_array_equal(read.images, pixels(1, channels=1))
    assert read.notes == ()


def test_colour_files_for_a_model_of_one_channel_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels()[0])
    expected = (
        "a.png is an image of mode RGB, the model takes 1 channel(s) of 8 bits; convert the files to gray"
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        read_images(tmp_path, None, GRAY)


def test_sixteen_bit_files_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((6, 5), 40_000, np.uint16))
    with pytest.raises(
        DataError, match=re.escape("a.png is an image of mode I;16, the model takes 3 channel(s)")
    ):
        read_images(tmp_path, None, RGB)


def test_files_of_another_size_are_refused_or_resized_when_asked(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels()[0])
    save(tmp_path / "b.png", np.full((12, 10, 3), 9, np.uint8))
    expected = (
        "b.png: images are 12 x 10 (height x width), the model takes 6 x 5; pass --resize 6 5 to resize them"
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        read_images(tmp_path, None, RGB)
    read = read_images(tmp_path, None, Geometry(3, (6, 5), channels_first=True, resize=True))
    np.testing.assert_array_equal(read.images[0], pixels()[0])
    assert read.images[1].tolist() == np.full((6, 5, 3), 9).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_are_resized_with_antialiasing(tmp_path: Path, dtype: type) -> None:
    stripes = np.zeros((1, 12, 10, 3), dtype)
    stripes[:, ::2] = 200  # plain bilinear sampling would meet only some of the rows
    np.save(tmp_path / "images.npy", stripes)
    read = read_images(tmp_path / "images.npy", None, Geometry(3, (6, 5), channels_first=True, resize=True))
    assert read.images.shape == (1, 6, 5, 3)
    np.testing.assert_allclose(read.images[0, 1:-1], 100, atol=8)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", pixels()[0])
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    with pytest.raises(
        DataError, match=r"broken\.png cannot be read as an image \(.*\); replace it or take it out"
    ):
        read_images(tmp_path, None, RGB)


def test_images_deeper_than_class_folders_are_refused_rather_than_left_out(tmp_path: Path) -> None:
    for name in ("cat", "train/dog"):
        (tmp_path / name).mkdir(parents=True)
        save(tmp_path / name / "a.png", pixels()[0])
    with pytest.raises(
        DataError, match=re.escape("holds images in train/dog, deeper than its class folders")
    ):
        read_images(tmp_path, None, RGB)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=re.escape("holds no images; expected files ending in .bmp, .jpeg, .jpg")
    ):
        read_images(tmp_path, None, RGB)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png", pixels()[0])
    save(tmp_path / "b.png", pixels()[0])
    with pytest.raises(
        DataError, match=r"holds class folders such as 'cat' and loose images such as 'b\.png'"
    ):
        read_images(tmp_path, None, RGB)


def test_labels_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "d" / "cat" / "a.png", pixels()[0])
    np.save(tmp_path / "l.npy", np.array([0]))
    with pytest.raises(OptionError, match="but class folders name the labels; leave one out"):
        read_images(tmp_path / "d", tmp_path / "l.npy", RGB)


@pytest.mark.parametrize("name", ["images.npy", "d.npz"])
def test_pickled_arrays_are_never_loaded(tmp_path: Path, name: str) -> None:
    hostile = np.array([{"a": 1}], dtype=object)
    if name.endswith("npz"):
        np.savez(tmp_path / name, images=hostile)
    else:
        np.save(tmp_path / name, hostile, allow_pickle=True)
    with pytest.raises(
        UnsafeArrayError, match=f"{name} holds pickled Python objects, which can run code when read"
    ):
        read_images(tmp_path / name, None, RGB)


def test_a_bare_pickle_with_the_suffix_npy_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "images.npy").write_bytes(pickle.dumps(pixels()))
    with pytest.raises(UnsafeArrayError, match="holds pickled Python objects"):
        read_images(tmp_path / "images.npy", None, RGB)


def test_an_archive_without_images_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=pixels(), y=np.arange(4))
    with pytest.raises(
        DataError, match=re.escape("holds 'x', 'y', expected the array 'images' (and 'labels')")
    ):
        read_images(tmp_path / "d.npz", None, RGB)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "gone is not there; expected a folder, an .npz or .npy file of images"),
        ("gone.npz", "gone.npz is not there; expected an .npz with the array 'images'"),
        ("gone.npy", "gone.npy is not there; expected an .npy file, check the path"),
        ("d.tar", "d.tar is neither a folder nor an .npz or .npy file of images"),
        ("broken.npz", "broken.npz cannot be read (File is not a zip file); save it again with numpy"),
        ("truncated.npy", "truncated.npy cannot be read ("),
        ("archive.npy", "archive.npy is an .npz archive with the suffix .npy; rename it"),
    ],
)
def test_data_that_is_no_data_is_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "d.tar").touch()
    np.save(tmp_path / "truncated.npy", pixels())
    (tmp_path / "truncated.npy").write_bytes((tmp_path / "truncated.npy").read_bytes()[:300])
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "archive.npz", images=pixels())
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(DataError, match=re.escape(message)):
        read_images(tmp_path / name, None, RGB)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 6, 5, 3), np.int64), "holds int64, expected uint8 (0 to 255) or floating-point images"),
        (np.zeros((0, 6, 5, 3), np.uint8), "holds no images (shape (0, 6, 5, 3))"),
        (np.zeros((4, 90), np.uint8), "has shape (4, 90), expected n h w c, n c h w or n h w"),
        (
            np.zeros((4, 6, 5, 1), np.uint8),
            "has shape (4, 6, 5, 1), but the model takes images of 3 channel(s)",
        ),
        (np.zeros((4, 6, 5), np.uint8), "has shape (4, 6, 5), but the model takes images of 3 channel(s)"),
        (np.zeros((4, 3, 9, 3), np.uint8), "which reads as n h w c and as n c h w, and in neither way are"),
        (np.zeros((4, 7, 5, 3), np.uint8), "images are 7 x 5 (height x width), the model takes 6 x 5"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, images: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "d.npz", images=images)
    with pytest.raises(DataError, match=re.escape(message)):
        read_images(tmp_path / "d.npz", None, RGB)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_data_damaged_anywhere_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.{suffix}"
    if suffix == "npz":
        np.savez_compressed(path, images=pixels())
    else:
        np.save(path, pixels())
    whole, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for position in generator.integers(0, min(len(whole), 400), 200):
        path.write_bytes(whole[:position] + generator.bytes(1) + whole[position + 1 :])
        try:
            read_images(path, None, RGB)
        except GuardError:
            refused += 1
    assert refused > 20


def test_axes_that_read_both_ways_are_told_apart_by_the_models_size(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 7, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    last = read_images(tmp_path / "images.npy", None, Geometry(3, (3, 7), channels_first=True, resize=False))
    first = read_images(tmp_path / "images.npy", None, Geometry(3, (7, 3), channels_first=True, resize=False))
    np.testing.assert_array_equal(last.images, images)
    np.testing.assert_array_equal(first.images, images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("channels_first", [True, False])
def test_cubes_are_read_in_the_models_own_layout(tmp_path: Path, channels_first: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    read = read_images(tmp_path / "images.npy", None, Geometry(3, (3, 3), channels_first, resize=False))
    np.testing.assert_array_equal(read.images, images.transpose(0, 2, 3, 1) if channels_first else images)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_images_that_are_not_finite_are_refused_by_number(tmp_path: Path, value: float) -> None:
    images = np.zeros((4, 6, 5, 3), np.float64)
    images[2, 0, 0, 0] = images[3, 5, 4, 2] = value
    np.savez(tmp_path / "d.npz", images=images)
    expected = "images: image 2 holds NaN or infinite values, and so do 2 of 4; leave them out"
    with pytest.raises(DataError, match=re.escape(expected)):
        read_images(tmp_path / "d.npz", None, RGB)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(3), "labels has 3 labels for 4 images, expected one for each"),
        (np.linspace(0, 1, 4), "labels has shape (4,) of float64, expected one integer class index an image"),
        (np.zeros((4, 10), np.int64), "labels has shape (4, 10) of int64, expected one integer class index"),
        (np.array([0, 1, -1, 2]), "labels: label -1 is negative, expected class indices from 0"),
        (np.array([0, 2**64 - 1, 1, 2], np.uint64), "label 18446744073709551615 is beyond 92233720368547758"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "d.npz", images=pixels(), labels=labels)
    with pytest.raises(DataError, match=re.escape(message)):
        read_images(tmp_path / "d.npz", None, RGB)


def test_the_digest_depends_on_every_pixel_and_on_their_order(tmp_path: Path) -> None:
    images = pixels()
    other = images.copy()
    other[3, 5, 4, 2] ^= 1
    digests = {
        digest_of(images),
        digest_of(other),
        digest_of(images[::-1]),
        digest_of(images.transpose(0, 3, 1, 2)),
    }
    assert len(digests) == 4
    np.save(tmp_path / "images.npy", images)
    assert read_images(tmp_path, None, RGB).digest == digest_of(images)
