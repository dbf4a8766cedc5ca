"""Overlays are plain numbers in the declared shape; nothing that could run code is ever loaded."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.artifact import read_artifact
from guard.artifact.reader import load_npy
from guard.errors import ArtifactError, ProfileError, UnsafeArrayError
from tests.artifacts import write_tiny_artifact
from tests.guard.artifact_edits import replace_file

SHAPE = (8, 3, 8, 8)


def load_or_refuse(data: bytes) -> np.ndarray | str:
    """Return the array, or the message of the ArtifactError."""
    with warnings.catch_warnings(action="ignore"):  # numpy's, on dtypes and headers of old versions
        try:
            return load_npy(data, "overlays.npy")
        except ArtifactError as error:
            return str(error)


class MakesDirectory:
    """An object whose pickle makes a directory when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path)


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def object_array(path: Path) -> bytes:
    array = np.empty(1, object)
    array[0] = MakesDirectory(path)
    return npy(array, allow_pickle=True)


def bare_pickle(path: Path) -> bytes:
    return pickle.dumps(MakesDirectory(path))


def bare_text_pickle(path: Path) -> bytes:
    return pickle.dumps(MakesDirectory(path), protocol=0)


@pytest.mark.parametrize("attack", [object_array, bare_pickle, bare_text_pickle])
def test_pickled_overlays_are_refused_and_never_run(artifact: Path, tmp_path: Path, attack: object) -> None:
    trace = tmp_path / "the pickle was run"
    replace_file(artifact, "overlays.npy", attack(trace))  # type: ignore[operator]
    with pytest.raises(
        UnsafeArrayError, match=r"overlays\.npy .*pickled .*run code; save it again as a plain"
    ):
        read_artifact(artifact)
    assert not trace.exists()


@pytest.mark.parametrize("attack", [object_array, bare_pickle, bare_text_pickle])
def test_the_attacks_would_have_worked(tmp_path: Path, attack: object) -> None:
    """Else the test above proves nothing."""
    trace = tmp_path / "the pickle was run"
    np.load(io.BytesIO(attack(trace)), allow_pickle=True)  # type: ignore[operator]
    assert trace.is_dir()


def test_a_field_of_objects_in_a_structured_array_is_refused(artifact: Path, tmp_path: Path) -> None:
    array = np.empty(1, [("image", "<f4"), ("hook", object)])
    array["hook"][0] = MakesDirectory(tmp_path / "run")
    replace_file(artifact, "overlays.npy", npy(array, allow_pickle=True))
    with pytest.raises(UnsafeArrayError, match=r"overlays\.npy .*pickled"):
        read_artifact(artifact)
    assert not (tmp_path / "run").exists()


def test_an_npz_in_place_of_the_npy_is_refused(artifact: Path) -> None:
    replace_file(artifact, "overlays.npy", npz(overlays=np.zeros(SHAPE, np.float32)))
    expected = r"overlays\.npy is an \.npz archive, expected a single \.npy array; write it again"
    with pytest.raises(ArtifactError, match=expected):
        read_artifact(artifact)


@pytest.mark.parametrize("kept", [0, 1, 5, 6, 9, 40, 127, 128, 129, -1])
def test_truncated_overlays_are_refused(artifact: Path, kept: int) -> None:
    whole = (artifact / "overlays.npy").read_bytes()
    replace_file(artifact, "overlays.npy", whole[:kept])
    with pytest.raises(
        ArtifactError, match=r"overlays\.npy is (not a readable|no plain) \.npy array.* again"
    ):
        read_artifact(artifact)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"PK\x03\x04 is how a zip begins", r"not a readable \.npy array .*zip"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((\n", r"not a readable \.npy array"),
        (b"\x93NUMPY\x09\x00" + bytes(99), r"not a readable \.npy array"),
    ],
)
def test_damaged_overlays_are_refused(artifact: Path, content: bytes, error: str) -> None:
    replace_file(artifact, "overlays.npy", content)
    with pytest.raises(ArtifactError, match=error):
        read_artifact(artifact)


def test_overlays_that_promise_more_than_they_hold_are_refused(artifact: Path) -> None:
    """The header asks for 8 EiB; the answer must be an error, not an allocation."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2305843009213693951,), }"
    header += b" " * (117 - len(header)) + b"\n"
    replace_file(artifact, "overlays.npy", b"\x93NUMPY\x01\x00" + bytes([118, 0]) + header)
    with pytest.raises(ArtifactError, match=r"overlays\.npy is not a readable \.npy array"):
        read_artifact(artifact)


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x03\x00", b"PK\x03\x04"])
)
def test_any_bytes_are_an_array_or_an_artifact_error(tail: bytes, head: bytes) -> None:
    loaded = load_or_refuse(head + tail)
    assert loaded.startswith("overlays.npy ") if isinstance(loaded, str) else not loaded.dtype.hasobject


@given(st.integers(0, 127), st.integers(0, 255))
def test_any_changed_byte_of_the_header_gives_an_array_or_an_artifact_error(where: int, value: int) -> None:
    data = bytearray(npy(np.zeros((2, 3), np.float32)))
    data[where] = value
    loaded = load_or_refuse(bytes(data))
    assert loaded.startswith("overlays.npy ") if isinstance(loaded, str) else not loaded.dtype.hasobject


@pytest.mark.parametrize(
    ("overlays", "got"),
    [
        (np.zeros((7, 3, 8, 8), np.float32), r"\(7, 3, 8, 8\) of float32"),  # one overlay short
        (np.zeros((9, 3, 8, 8), np.float32), r"\(9, 3, 8, 8\) of float32"),
        (np.zeros((8, 8, 8, 3), np.float32), r"\(8, 8, 8, 3\) of float32"),  # the other layout
        (np.zeros((8, 192), np.float32), r"\(8, 192\) of float32"),
        (np.float32(0.0), r"\(\) of float32"),
        (np.zeros(SHAPE, np.float64), r"of float64"),
        (np.zeros(SHAPE, np.uint8), r"of uint8"),
        (np.zeros(SHAPE, ">f4"), r"of >f4"),
    ],
)
def test_overlays_of_another_shape_or_dtype_are_refused(
    artifact: Path, overlays: np.ndarray, got: str
) -> None:
    replace_file(artifact, "overlays.npy", npy(overlays))
    expected = rf"overlays\.npy: expected shape \(8, 3, 8, 8\) of float32 .*got .*{got}; calibrate again"
    with pytest.raises(ProfileError, match=expected):
        read_artifact(artifact)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_overlays_that_are_not_finite_are_refused(artifact: Path, value: float) -> None:
    overlays = np.load(artifact / "overlays.npy", allow_pickle=False)
    overlays[5, 1, 2, 3] = value
    replace_file(artifact, "overlays.npy", npy(overlays))
    with pytest.raises(
        ProfileError, match=r"overlays\.npy holds NaN or infinite values; calibrate again with finite"
    ):
        read_artifact(artifact)


def test_overlays_stored_column_by_column_are_read_as_the_same_images(artifact: Path) -> None:
    overlays = np.load(artifact / "overlays.npy", allow_pickle=False)
    replace_file(artifact, "overlays.npy", npy(np.asfortranarray(overlays)))
    np.testing.assert_array_equal(read_artifact(artifact).overlays, overlays)


def test_a_zip_of_something_else_is_refused(artifact: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "no array")
    replace_file(artifact, "overlays.npy", buffer.getvalue())
    with pytest.raises(ArtifactError, match=r"overlays\.npy is an \.npz archive"):
        read_artifact(artifact)
