import numpy as np
import pytest
from scan_training_sets import bench_of, clean_set

from calibration.errors import DataError
from calibration.scan.executor import LocalExecutor
from calibration.scan.trusted import beside, chance_of_so_few, counted, excess, representative, smallest_seen


def test_the_chance_of_none_is_a_power_and_grows_with_the_looks() -> None:
    none, all_of_them = np.zeros(20, bool), np.ones(20, bool)
    assert chance_of_so_few(none, 0.5, 1) == pytest.approx(0.75**20)  # (1 - t / 2) to the power of m
    assert chance_of_so_few(none, 0.5, 6) == pytest.approx(6 * 0.75**20)
    assert chance_of_so_few(none, 0.5, 6, count=15) == pytest.approx(6 * 0.75**15)
    assert chance_of_so_few(all_of_them, 0.5, 6) == 1.0
    assert chance_of_so_few(none, 0.5, 6, count=0) == 1.0


def test_the_smallest_share_seen_is_where_the_chance_of_none_meets_alpha() -> None:
    share = smallest_seen(50, 0.05, 20)
    assert chance_of_so_few(np.zeros(50, bool), share, 20) == pytest.approx(0.05)
    assert smallest_seen(0, 0.05, 20) == 1.0


def test_images_drawn_alike_represent_and_frames_of_one_sign_do_not() -> None:
    generator = np.random.default_rng(0)
    training = generator.normal(size=(200, 4)).astype(np.float32)
    alike = generator.normal(size=(80, 4)).astype(np.float32)
    assert representative(alike, training) > 0.85
    frames = (2 + 0.05 * generator.normal(size=(80, 4))).astype(np.float32)
    assert representative(frames, training) < 0.1
    assert representative(alike[:1], training) == representative(alike, training[:0]) == 0.0


def test_clean_images_count_beside_what_is_left_of_a_label_that_is_nearly_all_poisoned() -> None:
    generator = np.random.default_rng(0)
    clean, poison = generator.normal(size=(50, 4)), 9 + generator.normal(size=(950, 4))
    training = np.concatenate([clean, poison]).astype(np.float32)
    trusted = generator.normal(size=(80, 4)).astype(np.float32)
    assert counted(trusted, training, np.zeros(1000, bool)) == 0
    assert counted(trusted, training, np.arange(1000) >= 50) > 60


def test_how_representative_images_are_is_counted_by_hand() -> None:
    # trusted 0 and 1 have each other, 9 has 10: a = 2/3; e = 2 / (2 + 2): (1 - 2/3) / (1 - 1/2)
    trusted, rest = np.array([[0.0], [1.0], [9.0]], np.float32), np.array([[10.0], [20.0]], np.float32)
    assert representative(trusted, rest) == pytest.approx(2 / 3)


def test_excess_is_the_poisoned_share_where_clean_images_do_not_explain_it() -> None:
    inside = np.arange(100) < 60
    assert excess(inside, np.zeros(999, bool)) == pytest.approx(0.6, abs=1e-3)
    assert excess(inside, np.arange(999) < 600) == 0.0
    # t = ε + (1 - ε) u: 0.6 = 0.2 + 0.8 × 0.5
    assert excess(inside, np.arange(9998) < 4999) == pytest.approx(0.2, abs=1e-3)


def test_without_a_training_set_the_flag_to_give_is_named() -> None:
    bench = bench_of(None)
    with pytest.raises(DataError, match="--training-set"):
        beside(bench, LocalExecutor(bench), "some_scanner")


def test_generated_images_are_not_trusted() -> None:
    bench = bench_of(clean_set(30, 0), generated=True)
    sets = beside(bench, LocalExecutor(bench), "some_scanner")
    assert not isinstance(sets, str)
    assert len(sets.trusted.labels) == 0
    trusting = bench_of(clean_set(30, 0))
    sets = beside(trusting, LocalExecutor(trusting), "some_scanner")
    assert not isinstance(sets, str)
    assert (len(sets.trusted.labels), len(sets.trusted_of(2)), sets.labels) == (300, 100, (0, 1, 2))
