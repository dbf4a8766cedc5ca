"""The demo's slice of clean images; needs only numpy and Pillow."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

__all__ = ["BLOB_SHA256", "PATH", "SHAPE", "decode", "load_clean_images"]

PATH = Path(__file__).with_name("clean_images.npz")
SHAPE = (3000, 32, 32, 3)
BLOB_SHA256 = "a76d472d2c25a292c5337a27b457c4aa1a51d72abd796c49339d7a8295a813af"


def load_clean_images(
    path: Path = PATH,
) -> tuple[UInt8[np.ndarray, "n h w c"], Int64[np.ndarray, " n"], list[str]]:
    """Return 3,000 CIFAR-10 images that the demo's model never saw, their labels and the class names.

    Raises:
        ValueError: If the file holds another shape or other pixels than the committed one.
    """
    with np.load(path, allow_pickle=False) as stored:
        blob, shape = stored["blob"], tuple(stored["shape"].tolist())
        labels = stored["labels"].astype(np.int64)
        class_names = stored["class_names"].tolist()
        digest = hashlib.sha256(blob.tobytes()).hexdigest()
        if shape != SHAPE or labels.shape != SHAPE[:1]:
            raise ValueError(f"{path.name}: expected images {SHAPE}, got {shape} with {len(labels)} labels")
        if digest != BLOB_SHA256:
            raise ValueError(f"{path.name}: expected a blob with sha256 {BLOB_SHA256}, got {digest}")
        images = decode(blob, stored["offsets"], stored["shape"], stored["per_chunk"])
    return images, labels, class_names


def decode(
    blob: UInt8[np.ndarray, " b"],
    offsets: Int64[np.ndarray, " s"],
    shape: Int64[np.ndarray, " d"],
    per_chunk: Int64[np.ndarray, ""],
) -> UInt8[np.ndarray, "n h w c"]:
    """Return the images whose WebP strips lie one after another in the blob."""
    count, height, width, channels = shape.tolist()
    images = np.empty((count, height, width, channels), np.uint8)
    for start, low, high in zip(range(0, count, int(per_chunk)), offsets[:-1], offsets[1:], strict=True):
        with Image.open(io.BytesIO(blob[low:high].tobytes())) as strip:
            pixels = np.asarray(strip.convert("RGB"))
        images[start : start + int(per_chunk)] = pixels.reshape(-1, height, width, channels)
    return images
