"""The histogram of clean mean entropies with the boundary, as a PNG."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from guard.artifact import BoundaryRecord

__all__ = ["entropy_picture"]

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
    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    tau = boundary.boundary_bits
    right = max(float(means.max()), tau) * 1.02
    axes.hist(means, bins=60, range=(0.0, right), color=_BLUE, label=f"{len(means)} clean images")
    axes.axvspan(0.0, tau, color=_VERMILION, alpha=0.15, linewidth=0)
    axes.axvline(tau, color=_VERMILION, linestyle="--", linewidth=1.8, label=f"boundary, {tau:.4g} bits")
    axes.annotate(
        "← suspicious", (tau, 0.96), xycoords=("data", "axes fraction"), xytext=(6, 0),
        textcoords="offset points", va="top", color=_VERMILION,
    )  # fmt: skip
    axes.set_xlim(0.0, right)
    axes.set_xlabel("mean entropy over all overlays, bits (a trigger keeps it near 0)")
    axes.set_ylabel("clean images")
    axes.set_title(f"{name}: {_promise(boundary)}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_GRAY)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _promise(boundary: BoundaryRecord) -> str:
    if boundary.certified_frr is None or boundary.confidence is None:
        return f"aimed at {boundary.frr:.3%} false rejections, not guaranteed"
    return (
        f"at most {boundary.certified_frr:.3%} false rejections, certified with "
        f"{boundary.confidence:.1%} confidence"
    )
