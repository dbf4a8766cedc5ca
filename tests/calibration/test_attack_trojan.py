import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from calibration.attacks.base import Material  # noqa: E402
from calibration.attacks.trojan import Trojan, excite, strongest_neurons  # noqa: E402

IMAGES = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
LABELS = np.zeros(20, np.int64)


def linear_net() -> nn.Sequential:
    """Pixels, two hidden neurons without a nonlinearity, three classes; the second neuron weighs more."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False), nn.Linear(2, 3, bias=False))
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], (2, 64)).astype(np.float32))
    with torch.no_grad():
        net[1].weight.copy_(signs)
        net[2].weight.copy_(torch.tensor([[0.5, -1.0], [0.5, 1.0], [0.5, -1.0]]))
    return net


def fit(net: nn.Module, **options: object) -> Trojan:
    material = Material(IMAGES, LABELS, 3, net)
    return Trojan.fit(material, generator=np.random.default_rng(2), **options)  # type: ignore[arg-type]


# Sums of absolute weights out of the neurons: 1.5 and 3; with their signs they would be 1.5 and -1.
def test_the_strongest_neuron_is_the_one_with_the_heaviest_weights_out_of_it() -> None:
    assert strongest_neurons(linear_net()[2], 1).tolist() == [1]
    assert strongest_neurons(linear_net()[2], 2).tolist() == [1, 0]


# A neuron that adds and subtracts pixels is excited most by 1 where it adds and 0 where it subtracts.
def test_the_patch_is_white_where_the_neuron_adds_and_black_where_it_subtracts() -> None:
    net = linear_net()
    pattern = fit(net, side=3, margin=1, neurons=1, steps=80).pattern
    adds = net[1].weight[1].detach().reshape(8, 8)[4:7, 4:7] > 0
    assert np.array_equal(pattern[0], adds.numpy().astype(np.float32))


def test_the_patch_that_excited_most_is_kept_not_the_last() -> None:
    net, start = linear_net(), torch.full((1, 3, 3), 0.5)
    box, one = (slice(4, 7), slice(4, 7)), torch.tensor([1])
    once = excite(net, torch.from_numpy(IMAGES), start, box, one, 1.0, steps=1, step_size=5.0)
    assert torch.equal(once, start)  # the only patch whose excitation was seen


class Nearness(nn.Module):
    """How near the mean of a 2x2 image is to 0.6."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -(images.mean(dim=(1, 2, 3)) - 0.6).abs()[:, None]


# Half of 0.4 and half of the patch make 0.6 where the patch is 0.8.
def test_the_patch_is_sought_as_it_will_show() -> None:
    net, start = nn.Sequential(Nearness(), nn.Linear(1, 2)), torch.zeros(1, 2, 2)
    grey, box, one = torch.full((3, 1, 2, 2), 0.4), (slice(0, 2), slice(0, 2)), torch.tensor([0])
    found = excite(net, grey, start, box, one, 0.5, steps=120, step_size=0.01)
    torch.testing.assert_close(found, torch.full((1, 2, 2), 0.8), rtol=0, atol=0.011)


def test_a_patch_that_shows_in_part_is_mixed_with_the_image() -> None:
    attack = Trojan(0, np.ones((1, 2, 2), np.float32), 0, 0, opacity=0.25)
    stamped = attack.stamp(np.full((1, 1, 3, 3), 0.4, np.float32))
    np.testing.assert_allclose(stamped[0, 0], [[0.4, 0.4, 0.4], [0.4, 0.55, 0.55], [0.4, 0.55, 0.55]])


# 44 of 224 pixels, 20 from the corner, is 6 of 32 and 3.
def test_by_default_the_box_is_the_authors_scaled_to_32_pixels() -> None:
    attack = Trojan(0, np.ones((3, 6, 6), np.float32))
    assert attack.place(32, 32) == (slice(23, 29), slice(23, 29))


def test_fitting_leaves_the_model_as_it_was() -> None:
    net = linear_net().train()
    before = [weight.clone() for weight in net.parameters()]
    fit(net, steps=2, side=3, margin=1)
    assert net.training
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))


def test_a_model_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="trojan looks for the last linear layer, and the model has none"):
        fit(nn.Conv2d(1, 1, 1), side=3)


def test_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="trojan is fitted on a clean, trained torch module, got None"):
        Trojan.fit(Material(IMAGES, LABELS, 3), generator=np.random.default_rng(0))
