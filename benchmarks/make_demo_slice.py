"""Cut the demo's slice of clean images out of CIFAR-10's ``data_batch_5``, which the demo's model never saw.

Run ``python -m benchmarks.make_demo_slice --data FOLDER``, where FOLDER holds ``load.py`` and the npz files.
The images are the first of a seeded permutation, stored as lossless WebP strips, one under another.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks.demo.data import PATH, decode
from benchmarks.demo.source import read_split

COUNT = 3000
SEED = 0
PER_CHUNK = 125


def main() -> None:
    """Write the slice, read it back, and print the hash that ``benchmarks/demo/data.py`` expects."""
    options = read_options()
    images, labels, class_names = read_split(options.data, "holdout10k")
    rows = np.random.default_rng(SEED).permutation(len(images))[:COUNT]
    arrays = encode(images[rows])
    np.savez(
        options.output, labels=labels[rows].astype(np.uint8), class_names=np.array(class_names), **arrays
    )
    if not np.array_equal(decode(**arrays), images[rows]):
        raise ValueError(f"{options.output}: expected the very pixels that went in, got others")
    counts = np.bincount(labels[rows], minlength=len(class_names))
    print(f"{options.output.name}: {COUNT} images, {options.output.stat().st_size} bytes")
    print("per class:", dict(zip(class_names, counts.tolist(), strict=True)))
    print("sha256 of the blob:", hashlib.sha256(arrays["blob"].tobytes()).hexdigest())


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--output", type=Path, default=PATH)
    return parser.parse_args()


def encode(images: UInt8[np.ndarray, "n h w c"]) -> dict[str, np.ndarray]:
    chunks = [images[start : start + PER_CHUNK] for start in range(0, len(images), PER_CHUNK)]
    strips = [_strip(chunk) for chunk in chunks]
    return {
        "blob": np.frombuffer(b"".join(strips), np.uint8),
        "offsets": np.cumsum([0, *(len(strip) for strip in strips)]),
        "shape": np.array(images.shape),
        "per_chunk": np.array(PER_CHUNK),
    }


def _strip(images: UInt8[np.ndarray, "n h w c"]) -> bytes:
    n, h, w, c = images.shape
    target = io.BytesIO()
    Image.fromarray(images.reshape(n * h, w, c)).save(target, "WEBP", lossless=True, quality=100, method=6)
    return target.getvalue()


if __name__ == "__main__":
    main()
