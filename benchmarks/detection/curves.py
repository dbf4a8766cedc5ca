"""The curves: detection rates by false-rejection rate, and how the fused scores lie, a panel a subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.detection.figures import FRR_GRID
from benchmarks.detection.tables import Record

__all__ = ["draw"]

COLUMNS = 4
DRAWN = {
    "max-softmax": "0.75",
    "strip": "tab:orange",
    "stratified": "tab:green",
    "fused": "tab:blue",
    "fused, accepting early": "tab:purple",
}


def draw(records: Sequence[Record], folder: Path) -> None:
    """Draw both pictures of each data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in sorted({one["data"] for one in records}):
        some = [one for one in records if one["data"] == data and one["attack"] is not None]
        if some:
            _panels(some, _roc, folder / f"{data}-roc.png")
            _panels(some, _histogram, folder / f"{data}-scores.png")


def _panels(records: Sequence[Record], one: Callable[[Axes, Record], None], path: Path) -> None:
    rows = -(-len(records) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(11, 2.3 * rows), squeeze=False)
    for axis, record in zip(axes.flat, records, strict=False):
        one(axis, record)
        axis.set_title(record["subject"], fontsize=8)
        axis.tick_params(labelsize=6)
    for axis in axes.flat[len(records) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.25 / rows / 2.3 * 1.2, 1, 1))
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def _roc(axis: Axes, record: Record) -> None:
    for name, colour in DRAWN.items():
        axis.plot(FRR_GRID, record["scores"][name]["roc"], color=colour, label=name, linewidth=1.2)
    axis.set(xscale="log", xlim=(FRR_GRID[0], 1), ylim=(-0.02, 1.02))
    axis.axvline(0.01, color="0.85", linewidth=0.8, zorder=0)


def _histogram(axis: Axes, record: Record) -> None:
    found = record["scores"]["fused"]["histogram"]
    edges = np.array(found["edges"])
    for part, colour in (("clean", "tab:blue"), ("triggered", "tab:red")):
        axis.stairs(found[part], edges, fill=True, alpha=0.5, color=colour, label=f"{part}, fused score")
    axis.set_yticks([])
