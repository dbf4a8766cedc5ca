"""``probe.npz``: what the model answered to a few images when it was calibrated, asked again on loading.

Hashes say that the files are those that were written. The probe says that what was loaded from them computes
what it computed then: another version of ONNX Runtime, another processor or a wrong provider shows here, and
not in the answers to clients.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64

from guard.arrays import HELD, Images
from guard.artifact.npy import load_npz
from guard.artifact.profile import Profile
from guard.errors import ProfileError

__all__ = ["Probe", "probe_bytes", "read_probe"]

_NAMES: Final = ("images", "logits", "mean_entropy_bits")


@dataclass(frozen=True, eq=False)
class Probe:
    """Images and the answers to them.

    Attributes:
        images: Clean images in the model's input space, layout and dtype; none of them is an overlay.
        logits: The model's raw output for each, as the classifier that serves returns it.
        mean_entropy_bits: Mean entropy of each over all N overlays, bits.
    """

    images: Images
    logits: Float32[np.ndarray, "n k"]
    mean_entropy_bits: Float64[np.ndarray, " n"]


def probe_bytes(probe: Probe) -> bytes:
    """Return the probe's file content."""
    buffer = io.BytesIO()
    np.savez(buffer, images=probe.images, logits=probe.logits, mean_entropy_bits=probe.mean_entropy_bits)
    return buffer.getvalue()


def read_probe(data: bytes, profile: Profile, where: str) -> Probe:
    """Read a probe and see that it fits the profile.

    Raises:
        UnsafeArrayError: If an array holds pickled objects.
        ArtifactError: If the bytes are no ``.npz`` file.
        ProfileError: If an array is missing, of another shape or dtype, or not finite.
    """
    arrays = load_npz(data, where)
    if sorted(arrays) != sorted(_NAMES):
        raise ProfileError(
            f"{where} holds the arrays {sorted(arrays)}, expected {sorted(_NAMES)}; calibrate again"
        )
    n = len(arrays["images"]) if arrays["images"].ndim else 0
    _check(arrays["images"], (max(n, 1), *profile.input.shape), HELD[profile.input.datatype], where)
    _check(arrays["logits"], (n, profile.output.classes), np.dtype(np.float32), where)
    _check(arrays["mean_entropy_bits"], (n,), np.dtype(np.float64), where)
    return Probe(*(arrays[name] for name in _NAMES))


def _check(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[np.generic], where: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ProfileError(
            f"{where}: expected shape {shape} of {dtype} as the profile says, got {array.shape} of "
            f"{array.dtype}; calibrate again"
        )
    if not np.isfinite(array.astype(np.float64)).all():
        raise ProfileError(f"{where} holds NaN or infinite values; calibrate again with finite images")
