"""Scoring: what comes out does not depend on batches, and memory does not depend on n or N."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.progress import Progress, StageClock
from calibration.scoring import batch_size, most_uncertain_first, predict, score_images
from guard.detection.strip import mean_entropies
from guard.errors import UnfitModelError


class TellingClassifier:
    """Answers each pair with a number that names image and overlay."""

    def __init__(self, n_overlays: int, broken: float | None = None) -> None:
        self.n_overlays, self.broken = n_overlays, broken
        self.calls: list[tuple[int, int]] = []

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.calls.append((len(images), len(images)))
        return np.stack([images[:, 0, 0, 0], -images[:, 0, 0, 0]], axis=1).astype(np.float32)

    def check(
        self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((len(images), len(image_index)))
        told = images[image_index, 0, 0, 0] * self.n_overlays + overlay_index
        told = np.where(told == self.broken, np.nan, told).astype(np.float32)
        return np.zeros((len(told), 2), np.float32), told


def numbered(n: int) -> np.ndarray:
    return np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 2, 2, 1)).copy()


def unchanged(images: np.ndarray) -> np.ndarray:
    return images


def quiet() -> Progress:
    return Progress(1, "test", quiet=True)


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 40))
def test_every_image_meets_every_overlay_once_whatever_the_batch(n: int, m: int, batch: int) -> None:
    classifier = TellingClassifier(m)
    table = score_images(classifier, numbered(n), unchanged, m, batch, quiet())
    np.testing.assert_array_equal(table, np.arange(n * m).reshape(n, m))
    assert max(pairs for _, pairs in classifier.calls) <= batch
    assert all(rows <= pairs for rows, pairs in classifier.calls)


@given(st.integers(1, 30), st.integers(1, 12))
def test_predictions_keep_the_order_of_the_images(n: int, batch: int) -> None:
    outputs = predict(TellingClassifier(1), numbered(n), unchanged, batch, quiet())
    np.testing.assert_array_equal(outputs[:, 0], np.arange(n))


def test_an_entropy_that_is_not_finite_is_refused_by_image_and_overlay() -> None:
    expected = r"answers 1 of \d+ blends in a batch with NaN or infinite scores, first image 3 with overlay 1"
    with pytest.raises(UnfitModelError, match=expected):
        score_images(TellingClassifier(4, broken=13.0), numbered(5), unchanged, 4, 6, quiet())


def test_overlays_are_ordered_by_mean_clean_entropy_highest_first() -> None:
    entropies = np.random.default_rng(0).gamma(2.0, 0.3, (50, 8)).astype(np.float32)
    means = mean_entropies(entropies[:, most_uncertain_first(entropies)].T)
    assert means.tolist() == sorted(means.tolist(), reverse=True)


@given(st.integers(1, 10**9))
def test_batches_are_bounded_in_bytes_but_never_tiny(row_bytes: int) -> None:
    size = batch_size(row_bytes)
    assert 8 <= size <= 256
    assert size == 8 or size * row_bytes <= 32 * 2**20


def test_no_bar_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "blends", quiet=False) as progress:
        progress.step(10)
    assert capsys.readouterr().err == ""


def test_a_person_at_a_terminal_sees_a_bar_unless_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(10, "blends", quiet=True) as progress:
        progress.step(10)
    assert capsys.readouterr().err == ""
    with Progress(10, "blends", quiet=False) as progress:
        progress.step(10)
    assert "blends" in capsys.readouterr().err


def test_the_clock_adds_up_stages_by_name() -> None:
    clock = StageClock()
    for name in ("read", "score", "read"):
        with clock.stage(name):
            pass
    assert list(clock.seconds) == ["read", "score"]
    assert clock.total == pytest.approx(sum(clock.seconds.values()))
