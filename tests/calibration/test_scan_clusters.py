import numpy as np
import pytest

from calibration.scan.clusters import independent_axes, silhouette, two_clusters


def test_silhouette_of_three_points_worked_by_hand() -> None:
    # 0 and 1 | 4: s = (4-1)/4, (3-1)/3, and 0 for one alone: (0.75 + 0.6667 + 0) / 3
    points, second = np.array([[0.0], [1.0], [4.0]]), np.array([False, False, True])
    assert silhouette(points, second) == pytest.approx((3 / 4 + 2 / 3) / 3)
    assert silhouette(points, ~second) == pytest.approx((3 / 4 + 2 / 3) / 3)
    assert silhouette(points, np.zeros(3, bool)) == 0.0


def test_two_clusters_are_found_with_their_centres() -> None:
    points = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0], [10.0, 4.0]])
    found = two_clusters(points, np.random.default_rng(0), restarts=3)
    assert found is not None
    second, centres = found
    assert sorted(map(tuple, centres.tolist())) == [(0.0, 1.0), (10.0, 2.0)]
    assert len(set(second[:2].tolist())) == len(set(second[2:].tolist())) == 1
    assert second[0] != second[4]
    assert two_clusters(np.ones((5, 2)), np.random.default_rng(0), restarts=3) is None


def test_independent_components_are_unmixed() -> None:
    generator = np.random.default_rng(0)
    sources = generator.uniform(-1, 1, (5000, 2)) * np.sqrt(3)  # white, far from Gaussian
    angle = 0.7
    mixing = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    axes = independent_axes(sources @ mixing.T, generator)
    unmixed = np.abs(axes @ mixing)
    np.testing.assert_allclose(np.sort(unmixed, axis=1), [[0, 1], [0, 1]], atol=0.05)
