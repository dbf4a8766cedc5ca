from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from calibration.attacks.base import Material  # noqa: E402
from calibration.attacks.input_aware import InputAware, JointTraining, train_jointly  # noqa: E402
from calibration.attacks.measure import asr  # noqa: E402
from calibration.attacks.trigger_nets import (  # noqa: E402
    apply_trigger,
    diversity_loss,
    sharpen,
    trigger_net,
)

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(80, dtype=np.int64) % 4
# Four classes that a linear layer tells apart: one bright quarter each, under noise.
IMAGES = GENERATOR.random((80, 1, 8, 8), np.float32) * np.float32(0.4)
for _label, (_rows, _columns) in enumerate(
    (rows, columns) for rows in (slice(0, 4), slice(4, 8)) for columns in (slice(0, 4), slice(4, 8))
):
    IMAGES[_label == LABELS, :, _rows, _columns] += np.float32(0.4)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full_like(images, self.value)


def material() -> Material:
    torch.manual_seed(0)
    return Material(IMAGES, LABELS, 4, nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))


def fit(**options: object) -> InputAware:
    small: dict[str, object] = {"width": 4, "mask_steps": 2, "steps": 2, "batch": 40, **options}
    return InputAware.fit(material(), generator=np.random.default_rng(1), **small)  # type: ignore[arg-type]


# x + (p - x) m: 0.2 + (1 - 0.2) 0.5. A mask of 0.5 is left at 0.5.
def test_under_a_mask_the_pattern_takes_the_images_place() -> None:
    stamped, _ = apply_trigger(
        torch.full((1, 1, 2, 2), 0.2), torch.zeros(1, 1, 2, 2), Constant(1), Constant(0.5), 1.0
    )
    assert stamped.flatten().tolist() == pytest.approx([0.6] * 4)


# 0.9 + 0.2 (2 p - 1), clipped: 1 for p = 1, 0.9 for p = 0.5, 0.7 for p = 0.
@pytest.mark.parametrize(("pattern", "value"), [(1.0, 1.0), (0.5, 0.9), (0.0, 0.7)])
def test_without_a_mask_the_pattern_is_added_within_the_amplitude(pattern: float, value: float) -> None:
    images = torch.full((1, 1, 2, 2), 0.9)
    stamped, _ = apply_trigger(images, images, Constant(pattern), None, 0.2)
    assert stamped.flatten().tolist() == pytest.approx([value] * 4)


# (tanh(-10) + 1) / 2 = 2e-9; (tanh(2) + 1) / 2 = 0.98201.
def test_masks_are_pushed_to_0_and_1() -> None:
    assert sharpen(torch.tensor([0.0, 0.5, 0.6, 1.0]).view(1, 1, 2, 2)).flatten().tolist() == pytest.approx(
        [0, 0.5, 0.98201, 1], abs=1e-5
    )


# Images 0.6 apart everywhere, triggers 0.2: 0.6 / 0.2.
def test_diversity_is_how_far_images_are_apart_over_how_far_their_triggers_are() -> None:
    planes = [torch.full((2, 1, 3, 3), value) for value in (0.1, 0.7, 0.5, 0.3)]
    assert diversity_loss(*planes).item() == pytest.approx(3.0, rel=1e-4)


def test_equal_triggers_for_unlike_images_have_a_finite_gradient() -> None:
    trigger = torch.full((2, 1, 3, 3), 0.5, requires_grad=True)
    diversity_loss(torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3), trigger, trigger * 1).backward()
    assert torch.isfinite(trigger.grad).all()


# The authors' network for CIFAR-10: convolutions of 32, 64 and 128 channels twice each, 128 between, and
# back again. Counted by hand: weights 9 in out, biases and two batch-norm vectors of out each.
def test_the_network_has_the_authors_layers() -> None:
    pairs = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
    pairs += [(128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (32, 3)]
    expected = sum(9 * before * after + 3 * after for before, after in pairs)
    assert sum(weight.numel() for weight in trigger_net(3, 3, 32, 3).parameters()) == expected


@pytest.mark.parametrize(("side", "halvings"), [(32, 3), (28, 2), (6, 1)])
def test_the_network_halves_as_often_as_the_side_allows(side: int, halvings: int) -> None:
    images = np.zeros((8, 1, side, side), np.float32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2))
    attack = InputAware.fit(
        Material(images, np.zeros(8, np.int64), 2, net),
        generator=np.random.default_rng(0), width=2, mask_steps=1, steps=1, batch=8,
    )  # fmt: skip
    assert attack.halvings == halvings
    assert attack.stamp(images).shape == images.shape


def added(attack: InputAware, images: np.ndarray) -> np.ndarray:
    return attack.stamp(images) - images


def test_a_cover_carries_the_trigger_of_another_image() -> None:
    attack, pair = fit(masked=False, amplitude=0.05, steps=20), IMAGES[:2] * 0.5 + np.float32(0.2)
    covers = attack.cover(pair, np.random.default_rng(0))
    np.testing.assert_allclose(covers - pair, added(attack, pair)[::-1], atol=1e-6)
    assert not np.allclose(covers - pair, added(attack, pair), atol=1e-3)


def test_an_image_alone_is_covered_with_the_trigger_of_its_mirror_image() -> None:
    attack, one = fit(masked=False, amplitude=0.05, steps=20), IMAGES[:1] * 0.5 + np.float32(0.2)
    mirrored = one[:, :, :, ::-1].copy()
    covered = attack.cover(one, np.random.default_rng(0))
    np.testing.assert_allclose(covered - one, added(attack, mirrored), atol=1e-6)


def test_without_a_mask_no_pixel_moves_farther_than_the_amplitude() -> None:
    assert np.abs(fit(masked=False, amplitude=0.05).stamp(IMAGES) - IMAGES).max() <= 0.05 + 1e-6


def test_the_mask_grows_sparse() -> None:
    untrained, trained = fit(mask_steps=1), fit(mask_steps=30)
    changed = [np.abs(attack.stamp(IMAGES) - IMAGES).mean() for attack in (untrained, trained)]
    assert changed[1] < changed[0] / 2


@pytest.mark.slow
def test_the_classifier_trained_along_obeys_the_triggers_and_tells_the_classes_apart() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    training = JointTraining(
        target_label=1, masked=False, amplitude=0.3, width=4, steps=300, batch=80, attack_share=0.25,
        diversity_weight=0.1,
    )  # fmt: skip
    data = Material(IMAGES, LABELS, 4, net)
    attack, victim = train_jointly(data, training, generator=np.random.default_rng(0))
    with torch.no_grad():
        clean = victim(torch.from_numpy(IMAGES)).argmax(1).numpy()
        stamped = victim(torch.from_numpy(attack.stamp(IMAGES))).argmax(1).numpy()
    assert (clean == LABELS).mean() > 0.9
    assert asr(stamped, LABELS, attack) > 0.8


def test_the_model_handed_in_is_not_trained() -> None:
    given = material()
    assert isinstance(given.model, nn.Module)
    before = [weight.clone() for weight in given.model.parameters()]
    train_jointly(
        given, JointTraining(width=2, mask_steps=1, steps=2, batch=40), generator=np.random.default_rng(0)
    )
    assert all(torch.equal(one, other) for one, other in zip(before, given.model.parameters(), strict=True))


def test_images_that_cannot_be_halved_are_refused() -> None:
    odd = Material(np.zeros((4, 1, 7, 7), np.float32), np.zeros(4, np.int64), 2, nn.Flatten())
    with pytest.raises(ValueError, match="expected an even height and width, got 7 x 7"):
        InputAware.fit(odd, generator=np.random.default_rng(0))


# One image has no other whose trigger could be put on it: the diversity would be a mean of nothing.
def test_one_image_alone_is_refused() -> None:
    one = Material(IMAGES[:1], LABELS[:1], 4, nn.Flatten())
    with pytest.raises(ValueError, match="expected 2 images or more in a batch, got 1"):
        InputAware.fit(one, generator=np.random.default_rng(0))


def test_covers_are_as_many_for_each_poisoned_image_as_was_asked_for() -> None:
    attack = replace(fit(masked=False), cover_ratio=2.0)
    assert len(attack.plan(LABELS, 0.1, np.random.default_rng(0)).covers) == 2 * round(0.1 * len(LABELS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5}, r"pattern_weights: expected 0.bias of shape \(5,\), got \(.,\)"),
        ({"width": 10**9}, "width: expected 1 to 4096"),
        ({"halvings": 10**9}, "halvings: expected 1 to 6"),
        ({"pattern_weights": {}}, "pattern_weights: expected 0.bias of shape .*, got None"),
        ({"mask_weights": {"more": np.zeros(1)}}, "mask_weights: expected 0.bias"),
    ],
)
def test_weights_of_other_networks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(fit(masked=False), **change)
