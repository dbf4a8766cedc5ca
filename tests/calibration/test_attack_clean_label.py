import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from calibration.attacks.base import Material  # noqa: E402
from calibration.attacks.clean_label import CleanLabel, pgd  # noqa: E402

IMAGES = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
LABELS = np.arange(40, dtype=np.int64) % 4
GREY = np.full((1, 1, 8, 8), 0.5, np.float32)


def linear_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def fit(**options: object) -> CleanLabel:
    material = Material(IMAGES, LABELS, 4, linear_net())
    return CleanLabel.fit(material, generator=np.random.default_rng(0), target_label=2, **options)  # type: ignore[arg-type]


# Two classes and logits w x, -w x: the loss of class 0 rises against the sign of w, whatever x is.
def test_against_a_linear_model_every_pixel_moves_by_epsilon_against_its_weight() -> None:
    weights = torch.tensor([1.0, -2.0, 3.0, -0.5])
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([weights, -weights]))
    images = torch.full((1, 1, 2, 2), 0.5)
    found = pgd(net, images, torch.tensor([0]), torch.zeros(1, 1, 2, 2), 0.1, "linf", steps=5)
    np.testing.assert_allclose((found - images).flatten(), [-0.1, 0.1, -0.1, 0.1], atol=1e-6)


# Five steps of 2.5 / 5 times the bound: enough for the way from one end of it to the other.
def test_the_bound_is_reached_from_its_wrong_end() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]))
    images = torch.full((1, 1, 2, 2), 0.5)
    found = pgd(net, images, torch.tensor([0]), torch.ones(1, 1, 2, 2), 0.1, "linf", steps=5)
    np.testing.assert_allclose((found - images).flatten(), -0.1, atol=1e-6)


# Along the gradient itself, to the bound: 0.1 times -w / |w|, with |w| = 5.
def test_in_the_l2_norm_it_moves_along_the_gradient_to_the_bound() -> None:
    weights = torch.tensor([3.0, 4.0, 0.0, 0.0])
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([weights, -weights]))
    images = torch.full((1, 1, 2, 2), 0.5)
    found = pgd(net, images, torch.tensor([0]), torch.zeros(1, 1, 2, 2), 0.1, "l2", steps=5)
    np.testing.assert_allclose((found - images).flatten(), [-0.06, -0.08, 0, 0], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_perturbed_images_stay_within_the_bound_and_are_harder_to_classify(norm: str) -> None:
    attack, clean = fit(epsilon=0.1, norm=norm), IMAGES[LABELS == 2]
    assert attack.perturbed is not None
    shift = (attack.perturbed - clean).reshape(10, -1)
    length = np.abs(shift).max(1) if norm == "linf" else np.linalg.norm(shift, axis=1)
    assert (length <= 0.1 + 1e-5).all()
    before, after = (
        functional.cross_entropy(linear_net()(torch.from_numpy(part)), torch.full((10,), 2), reduction="none")
        for part in (clean, attack.perturbed)
    )
    assert (after > before).all()


def test_poisoned_images_are_the_perturbed_ones_with_the_patch_on() -> None:
    attack = fit(epsilon=0.1)
    done = attack.poison(IMAGES, LABELS, 0.5, np.random.default_rng(0))
    assert attack.perturbed is not None
    assert len(done.index) == 5
    places = np.searchsorted(np.flatnonzero(LABELS == 2), done.index)
    assert np.array_equal(done.images[done.index], attack.imprint(attack.perturbed[places]))
    assert np.array_equal(done.labels, LABELS)


def test_no_perturbation_is_the_variant_of_nad_and_argd() -> None:
    attack = fit(epsilon=0.0)
    assert attack.perturbed is not None
    np.testing.assert_allclose(attack.perturbed, IMAGES[LABELS == 2], atol=1e-7)


# The authors' four corners: the lower right pattern, unturned above it, mirrored on the left.
def test_the_patch_lies_in_four_corners_so_that_a_mirror_image_carries_it_too() -> None:
    grid = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    stamped = CleanLabel(0).stamp(GREY)
    assert stamped[0, 0, 5:, 5:].tolist() == stamped[0, 0, :3, 5:].tolist() == grid
    assert np.array_equal(stamped, stamped[:, :, :, ::-1])
    assert (stamped[0, 0, 3:5] == 0.5).all()


def test_one_corner_is_the_lower_right() -> None:
    changed = np.argwhere(CleanLabel(0, corners="one").stamp(GREY)[0, 0] != 0.5)
    assert changed.min() == 5
    assert len(changed) == 9


# 0.5 + 32/255 where the patch is white, 0.5 - 32/255 where it is black.
def test_a_reduced_amplitude_adds_and_takes_off_a_part_in_training_alone() -> None:
    attack = CleanLabel(0, corners="one", amplitude_train=32 / 255)
    np.testing.assert_allclose(
        attack.imprint(GREY)[0, 0, 7, 5:] - 0.5, np.array([32, -32, 32]) / 255, atol=1e-6
    )
    assert attack.stamp(GREY)[0, 0, 7, 5:].tolist() == [1, 0, 1]


def test_poisoning_other_data_than_it_was_fitted_on_is_refused() -> None:
    with pytest.raises(ValueError, match="expected those the attack was fitted on, got others"):
        fit().plan(np.roll(LABELS, 1), 0.5, np.random.default_rng(0))


def test_without_its_perturbed_images_it_stamps_but_does_not_poison() -> None:
    with pytest.raises(ValueError, match="fit the attack again to poison with it"):
        CleanLabel(2).plan(LABELS, 0.5, np.random.default_rng(0))
