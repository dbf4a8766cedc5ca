"""Two clusters of points, how far apart they are, and the axes along which points are independent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.spatial.distance import cdist

__all__ = ["independent_axes", "silhouette", "two_clusters"]


def two_clusters(
    points: Float[np.ndarray, "n k"], generator: np.random.Generator, *, restarts: int
) -> tuple[Bool[np.ndarray, " n"], Float64[np.ndarray, "two k"]] | None:
    """Return who is in the second of two clusters, and their centres; None if all points are one.

    K-means from k-means++ centres; of all restarts, the one with the least sum of squared distances.
    """
    best: tuple[float, Bool[np.ndarray, " n"], Float64[np.ndarray, "two k"]] | None = None
    for _ in range(restarts):
        first = points[generator.integers(len(points))]
        far = ((points - first) ** 2).sum(1, dtype=np.float64)
        if far.sum() == 0:
            return None
        start = np.stack([first, points[generator.choice(len(points), p=far / far.sum())]])
        try:
            centres, _ = kmeans2(
                points.astype(np.float64), start.astype(np.float64), iter=50, minit="matrix", missing="raise"
            )
        except ClusterError:
            continue
        distances = cdist(points, centres, "sqeuclidean")
        second, spread = distances.argmin(1) == 1, float(distances.min(1).sum())
        if second.any() and not second.all() and (best is None or spread < best[0]):
            best = spread, second, centres
    return None if best is None else (best[1], best[2])


def silhouette(points: Float[np.ndarray, "n k"], second: Bool[np.ndarray, " n"]) -> float:
    r"""Return the mean silhouette of two clusters; 0 where one of them is empty.

    .. math:: s_i = \frac{b_i - a_i}{\max(a_i, b_i)}

    a is the mean distance to the others of one's own cluster, b to the other cluster; s is 0 for one alone.

    Examples:
        >>> silhouette(np.array([[0.0], [1.0], [4.0]]), np.array([False, False, True])).__round__(4)
        0.4722
    """
    sizes = np.array([(~second).sum(), second.sum()])
    if not sizes.all():
        return 0.0
    distances = cdist(points, points)
    sums = np.stack([distances[:, ~second].sum(1), distances[:, second].sum(1)], 1)
    rows, own = np.arange(len(points)), second.astype(int)
    within = sums[rows, own] / np.maximum(sizes[own] - 1, 1)
    between = sums[rows, 1 - own] / sizes[1 - own]
    largest = np.maximum(within, between)
    scores = np.where((sizes[own] > 1) & (largest > 0), (between - within) / np.maximum(largest, 1e-300), 0.0)
    return float(scores.mean())


def independent_axes(
    whitened: Float[np.ndarray, "n k"], generator: np.random.Generator, *, steps: int = 200
) -> Float64[np.ndarray, "k k"]:
    r"""Return the rotation of white data into independent components: symmetric FastICA with tanh.

    .. math:: W \leftarrow (W W^\top)^{-1/2} W, \quad
        W = \tfrac1n g(Y)^\top X - \mathrm{diag}(\overline{g'(Y)})\, W, \quad Y = X W^\top

    References:
        Hyvärinen, Fast and robust fixed-point algorithms for independent component analysis, 1999.
    """
    width = whitened.shape[1]
    axes = _decorrelated(generator.normal(size=(width, width)))
    for _ in range(steps):
        squashed = np.tanh(whitened @ axes.T)
        turned = _decorrelated(
            squashed.T @ whitened / len(whitened) - (1 - squashed**2).mean(0)[:, None] * axes
        )
        change = np.abs(np.abs((turned * axes).sum(1)) - 1).max(initial=0.0)
        axes = turned
        if change < 1e-6:
            break
    return axes


def _decorrelated(axes: Float64[np.ndarray, "k k"]) -> Float64[np.ndarray, "k k"]:
    left, _, right = np.linalg.svd(axes)
    rotation: Float64[np.ndarray, "k k"] = left @ right
    return rotation
