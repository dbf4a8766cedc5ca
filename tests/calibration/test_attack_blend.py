import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.attacks.base import Material
from calibration.attacks.blend import Blend

WHITE = np.ones((3, 4, 4), np.float32)
DIM = np.full((2, 3, 4, 4), 0.2, np.float32)


# 0.15 * 1 + 0.85 * 0.2 and 0.2 * 1 + 0.8 * 0.2.
@pytest.mark.parametrize(("alpha", "value"), [(0.15, 0.32), (0.2, 0.36)])
def test_the_pattern_and_the_image_are_mixed_by_alpha(alpha: float, value: float) -> None:
    np.testing.assert_allclose(Blend(0, WHITE, alpha).stamp(DIM), value, rtol=1e-6)


def test_training_images_may_carry_another_share_than_test_images() -> None:
    attack = Blend(0, WHITE, alpha=0.2, alpha_train=0.15)
    np.testing.assert_allclose(attack.imprint(DIM), 0.32, rtol=1e-6)
    np.testing.assert_allclose(attack.stamp(DIM), 0.36, rtol=1e-6)


def test_one_pattern_lies_over_all_images() -> None:
    material = Material(DIM, np.zeros(2, np.int64), 10)
    shift = Blend.fit(material, generator=np.random.default_rng(0)).stamp(DIM) - DIM
    assert np.array_equal(shift[0], shift[1])
    assert shift[0].std() > 0.01


@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_every_value_lies_between_pattern_and_image(alpha: float, pattern: float, value: float) -> None:
    images = np.full((1, 1, 1, 1), value, np.float32)
    stamped = Blend(0, np.full((1, 1, 1), pattern, np.float32), alpha).stamp(images)
    assert min(pattern, value) - 1e-6 <= stamped.item() <= max(pattern, value) + 1e-6


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_share_that_shows_nothing_or_more_than_all_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha: expected a share in \(0, 1\], got {alpha}"):
        Blend(0, WHITE, alpha)


def test_a_pattern_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pattern: expected values in \[0, 1\], got up to 2.0"):
        Blend(0, 2 * WHITE)


def test_images_of_another_shape_than_the_pattern_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the pattern's shape \(3, 4, 4\), got \(3, 4, 5\)"):
        Blend(0, WHITE).stamp(np.zeros((1, 3, 4, 5), np.float32))
