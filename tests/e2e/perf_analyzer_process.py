"""NVIDIA's perf_analyzer, unmodified, out of its own environment; and what its table says."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import peers
from peers.environments import packages, scripts_alone

__all__ = ["Measured", "PerfAnalyzer"]

LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""What it needs beside itself, and how Triton's wheel calls it."""


@dataclass(frozen=True)
class Measured:
    """One row of its table.

    Attributes:
        concurrency: Requests under way at a time.
        per_second: Requests answered a second.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
    """

    concurrency: int
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that sends the same images over and over.

    Attributes:
        folder: Where its libraries, its images and its tables are.
    """

    folder: Path

    def write_images(self, name: str, images: np.ndarray) -> Path:
        """Write images, ``(n, c, h, w)``, as its data file for the input ``name``; return where it is."""
        rows = [{name: {"content": row.ravel().tolist(), "shape": list(row.shape)}} for row in images]
        path = self.folder / "images.json"
        path.write_text(json.dumps({"data": rows}))
        return path

    def run(self, address: str, model: str, *options: str, limit_s: float = 600.0) -> list[Measured]:
        """Measure a model at an address; raise :class:`RuntimeError` with its words where it fails."""
        table = self.folder / "table.csv"
        table.unlink(missing_ok=True)
        home = peers.environment("perf_analyzer")
        program = str(home / "bin" / "perf_analyzer")
        done = subprocess.run(
            [program, "-m", model, "-u", address, "-i", "grpc", "-b", "1", "-f", str(table), *options],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env=scripts_alone(home, LD_LIBRARY_PATH=self._libraries()),
        )
        if done.returncode != 0 or not table.is_file():
            raise RuntimeError(f"perf_analyzer ended with {done.returncode}: {done.stdout}{done.stderr}")
        with table.open() as rows:
            return [_measured(row) for row in csv.DictReader(rows)]

    def _libraries(self) -> Path:
        """Return a folder with the libraries under the names by which it looks for them."""
        folder = self.folder / "libraries"
        folder.mkdir(exist_ok=True)
        site = packages(peers.environment("triton")) / "nvidia_pytriton.libs"
        for name, pattern in LIBRARIES.items():
            [there] = site.glob(pattern)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(there.resolve())
        return folder


def _measured(row: dict[str, str]) -> Measured:
    return Measured(
        int(row["Concurrency"]),
        float(row["Inferences/Second"]),
        float(row["p50 latency"]) / 1000,
        float(row["p99 latency"]) / 1000,
    )
