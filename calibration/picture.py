"""The histograms of clean scores with the boundary, as a PNG."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from guard.artifact import BoundaryRecord, ScoreBoundary

__all__ = ["entropy_picture", "score_picture"]

# Two hues that stay apart in every common colour-vision deficiency (Okabe and Ito, 2008).
_BLUE, _VERMILION, _GRAY = "#0072B2", "#D55E00", "#555555"


def entropy_picture(means: Float[np.ndarray, " n"], boundary: BoundaryRecord, name: str) -> bytes:
    """Draw the clean images' mean entropies and where the boundary cuts them.

    Args:
        means: Mean entropy of each calibration image, bits.
        boundary: The boundary.
        name: Name of the model, for the title.

    Returns:
        The content of a PNG file; the same input gives the same bytes.
    """
    tau = boundary.boundary_bits
    right = max(float(means.max()), tau) * 1.02
    figure = _histogram(means, (0.0, right), f"boundary, {tau:.4g} bits", tau, _title(name, boundary))
    axes = figure.axes[0]
    axes.axvspan(0.0, tau, color=_VERMILION, alpha=0.15, linewidth=0)
    axes.set_xlabel("mean entropy over all overlays, bits (a trigger keeps it near 0)")
    _mark(axes, "← suspicious", tau)
    return _png(figure)


def score_picture(scores: Float[np.ndarray, " n"], boundary: ScoreBoundary, name: str) -> bytes:
    """Draw the clean images' fused scores and where the boundary cuts them.

    Args:
        scores: Score of each calibration image.
        boundary: The boundary.
        name: Name of the model, for the title.

    Returns:
        The content of a PNG file; the same input gives the same bytes.
    """
    edge = boundary.boundary
    left, right = float(scores.min()), max(float(scores.max()), edge) * 1.1
    figure = _histogram(scores, (left, right), f"boundary, {edge:.4g}", edge, _title(name, boundary))
    axes = figure.axes[0]
    axes.axvspan(edge, right, color=_VERMILION, alpha=0.15, linewidth=0)
    axes.set_xlabel("score over all overlays (0: the median of clean inputs, 1: above 98 % of them)")
    _mark(axes, "suspicious →", edge)
    return _png(figure)


def _histogram(
    values: Float[np.ndarray, " n"], ends: tuple[float, float], label: str, edge: float, title: str
) -> Figure:
    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(values, bins=60, range=ends, color=_BLUE, label=f"{len(values)} clean images")
    axes.axvline(edge, color=_VERMILION, linestyle="--", linewidth=1.8, label=label)
    axes.set_xlim(*ends)
    axes.set_ylabel("clean images")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_GRAY)
    axes.legend(frameon=False)
    return figure


def _mark(axes: Axes, text: str, edge: float) -> None:
    axes.annotate(
        text, (edge, 0.96), xycoords=("data", "axes fraction"), xytext=(6, 0),
        textcoords="offset points", va="top", color=_VERMILION,
    )  # fmt: skip


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _title(name: str, boundary: BoundaryRecord | ScoreBoundary) -> str:
    return f"{name}: {_promise(boundary)}"


def _promise(boundary: BoundaryRecord | ScoreBoundary) -> str:
    if boundary.certified_frr is None or boundary.confidence is None:
        return f"aimed at {boundary.frr:.3%} false rejections, not guaranteed"
    return (
        f"at most {boundary.certified_frr:.3%} false rejections, certified with "
        f"{boundary.confidence:.1%} confidence"
    )
