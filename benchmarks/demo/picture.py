"""The demo's picture: what was sent and what became of it, over the two entropy histograms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from benchmarks.client import Answer

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from benchmarks.demo.__main__ import Traffic

CLEAN, TRIGGERED, LINE = "#0072b2", "#d55e00", "#222222"
EXAMPLES = 8


def draw(
    path: Path,
    traffic: Traffic,
    clean: list[Answer],
    triggered: list[Answer],
    clean_scores: np.ndarray,
    triggered_scores: np.ndarray,
    boundary: float,
) -> None:
    figure = plt.figure(figsize=(12, 7.6), layout="constrained")
    grid = figure.add_gridspec(3, EXAMPLES, height_ratios=(1, 1, 2.2))
    rows = (
        ("clean", CLEAN, traffic.clean, traffic.labels, clean),
        ("triggered", TRIGGERED, traffic.triggered, traffic.triggered_labels, triggered),
    )
    for row, (name, colour, images, labels, answers) in enumerate(rows):
        for column in range(EXAMPLES):
            axes = figure.add_subplot(grid[row, column])
            truth = traffic.class_names[labels[column]]
            _example(
                axes,
                images[column],
                f"{name}: {truth}",
                _verdict(answers[column], traffic.class_names),
                colour,
            )
    _histograms(figure.add_subplot(grid[2, :]), clean_scores, triggered_scores, boundary)
    figure.suptitle("A backdoored classifier behind the guard: what was sent (above), what came back (below)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _verdict(answer: Answer, names: list[str]) -> str:
    return "REJECTED" if answer.label is None else f"accepted: {names[answer.label]}"


def _example(axes: Axes, image: np.ndarray, title: str, verdict: str, colour: str) -> None:
    axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    axes.set_title(title, fontsize=8, color=colour)
    axes.set_xlabel(verdict, fontsize=8, fontweight="bold" if verdict == "REJECTED" else "normal")
    axes.set_xticks([])
    axes.set_yticks([])


def _histograms(axes: Axes, clean: np.ndarray, triggered: np.ndarray, boundary: float) -> None:
    bins = np.linspace(min(clean.min(), triggered.min()), max(clean.max(), triggered.max()), 81)
    weight = [np.full(len(values), 100 / len(values)) for values in (clean, triggered)]
    axes.hist(clean, bins, weights=weight[0], color=CLEAN, alpha=0.75, label=f"{len(clean)} clean images")
    axes.hist(
        triggered, bins, weights=weight[1], color=TRIGGERED, alpha=0.75, label=f"{len(triggered)} triggered"
    )
    axes.axvline(boundary, color=LINE, linestyle="--", label=f"boundary {boundary:.3f}")
    axes.set_yscale("log")
    axes.set_xlabel("score over all blends (above the boundary: rejected)")
    axes.set_ylabel("share of images, %")
    axes.legend(frameon=False)
