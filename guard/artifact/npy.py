"""Read numpy's file formats from memory, never unpickling."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib

import numpy as np

from guard.errors import ArtifactError, UnsafeArrayError

__all__ = ["NPY_ERRORS", "load_npy", "load_npz"]

_PICKLE_MARK = "allow_pickle"

NPY_ERRORS = (
    ValueError,
    EOFError,
    OSError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises on damaged ``.npy`` and ``.npz`` files."""


def load_npy(data: bytes, where: str) -> np.ndarray:
    """Read one ``.npy`` array from memory, refusing pickled objects.

    Raises:
        UnsafeArrayError: If the array holds Python objects.
        ArtifactError: If the bytes are no ``.npy`` file.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except NPY_ERRORS as error:
        raise _unreadable(error, where, "plain .npy array", "readable .npy array") from error
    if not isinstance(array, np.ndarray):
        raise ArtifactError(f"{where} is an .npz archive, expected a single .npy array; write it again")
    return array


def load_npz(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Read every array of an uncompressed ``.npz`` archive from memory, refusing pickled objects.

    Raises:
        UnsafeArrayError: If an array holds Python objects.
        ArtifactError: If the bytes are no ``.npz`` file, or one that takes more memory than it has bytes.
    """
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ArtifactError(f"{where} is a single .npy array, expected an .npz archive; write it again")
        with archive:
            _refuse_a_bomb(archive.zip, len(data), where)
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (*NPY_ERRORS, RuntimeError) as error:  # RuntimeError: a member is encrypted
        raise _unreadable(error, where, "plain .npz archive", "readable .npz archive") from error


def _refuse_a_bomb(archive: zipfile.ZipFile, size: int, where: str) -> None:
    """Refuse what takes more memory than its file lets expect; ``numpy.savez`` compresses nothing."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > size:
        raise ArtifactError(
            f"{where} has {size} bytes and {unpacked} once unpacked, expected an archive that is not "
            f"compressed; write it again with numpy.savez"
        )


def _unreadable(error: Exception, where: str, plain: str, readable: str) -> ArtifactError:
    if _PICKLE_MARK in str(error):
        return UnsafeArrayError(
            f"{where} is no {plain} and would be read as pickled Python objects, which can "
            f"run code; save it again as a plain numeric array"
        )
    return ArtifactError(f"{where} is not a {readable} ({error}); write it again")
