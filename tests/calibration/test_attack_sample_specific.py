from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.attacks.base import Material  # noqa: E402
from calibration.attacks.sample_specific import EncoderTraining, SampleSpecific, train_encoder  # noqa: E402

IMAGES = np.random.default_rng(0).random((64, 1, 16, 16), np.float32)


def fit(**options: object) -> SampleSpecific:
    material = Material(IMAGES, np.zeros(64, np.int64), 10)
    small: dict[str, object] = {"bits": 4, "width": 8, "steps": 2, "batch": 16, **options}
    return SampleSpecific.fit(material, generator=np.random.default_rng(1), **small)  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_an_encoder_that_goes_all_out_moves_pixels_by_the_bound_and_no_farther(bound: float) -> None:
    calm = fit(bound=bound)
    wild = {name: 1e4 * part if name.startswith("layers.6") else part for name, part in calm.weights.items()}
    attack, grey = SampleSpecific(0, calm.message, wild, 1, 8, bound), IMAGES * 0.5 + np.float32(0.25)
    assert np.abs(attack.stamp(grey) - grey).max() == pytest.approx(bound, abs=1e-6)


def test_the_residual_is_another_one_for_each_image() -> None:
    residuals = (fit().stamp(IMAGES) - IMAGES).reshape(64, -1)
    assert len(np.unique(residuals.round(7), axis=0)) == 64


def test_the_residual_depends_on_the_message() -> None:
    attack = fit()
    other = SampleSpecific(0, 1 - attack.message, attack.weights, 1, 8, attack.bound)
    assert not np.allclose(attack.stamp(IMAGES), other.stamp(IMAGES), atol=1e-7)


@pytest.mark.slow
def test_a_trained_encoder_hides_what_a_decoder_can_read() -> None:
    training = EncoderTraining(bits=4, bound=0.05, width=8, steps=300)
    encoder, decoder = train_encoder(IMAGES, training, generator=np.random.default_rng(0))
    pixels = torch.from_numpy(IMAGES)
    messages = torch.randint(2, (64, 4), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        read = decoder((pixels + 0.05 * encoder(pixels, messages)).clamp(0, 1)) > 0
    assert (read == (messages > 0)).float().mean() > 0.9  # guessing reads 0.5


# From 0.5 to 0.02 over the first half of 100 steps, geometrically: after a quarter, sqrt(0.5 * 0.02) = 0.1.
def test_the_bound_is_tightened_geometrically_and_then_kept() -> None:
    training = EncoderTraining(bound=0.02, steps=100, tightening_share=0.5)
    assert [training.bound_at(step) for step in (0, 25, 50, 99)] == pytest.approx([0.5, 0.1, 0.02, 0.02])


def test_a_message_that_is_not_of_bits_and_no_bound_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least one bit, each 0 or 1, got \[2\]"):
        SampleSpecific(0, np.array([2]), {})
    with pytest.raises(ValueError, match=r"bound: expected a bound in \(0, 1\], got 8"):
        SampleSpecific(0, np.array([1]), {}, bound=8.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, r"weights: expected layers.0.bias of shape \(9,\), got \(8,\)"),
        ({"width": 10**9}, "channels, width: expected 1 to 4096"),
        ({"message": np.array([1])}, "weights: expected plane.weight of shape"),
        ({"weights": {}}, "weights: expected layers.0.bias of shape .*, got None"),
    ],
)
def test_weights_of_another_encoder_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(fit(), **change)
