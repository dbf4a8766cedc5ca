"""Fine-pruning: what it ranks, where it stops, and that what it takes out stays out."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, fx, nn  # noqa: E402

from calibration.batch_norm import fold_batch_norm  # noqa: E402
from calibration.errors import ModelError  # noqa: E402
from calibration.labelled import Labelled  # noqa: E402
from calibration.repair.base import Sitting, accuracy, copy_of  # noqa: E402
from calibration.repair.channel_removal import find_slots, zero_channels  # noqa: E402
from calibration.repair.channels import find_site, parts  # noqa: E402
from calibration.repair.fine_pruning import FinePruning, choose_channels  # noqa: E402
from tests.contract.repair_subjects import SHAPES, Residual, network_of, supplies_of  # noqa: E402

ROW = (3, 16, 16)
QUICK = FinePruning(epochs=2, batch=16, rate=0.02, precision="float32")


class Preactivation(nn.Module):
    """A block after its norm and activation, added to what it was made of; norm, activation, mean, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first, self.norm, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        stream = stream + self.inner(torch.relu(self.first(stream)))
        logits: Tensor = self.head(torch.relu(self.norm(stream)).mean((2, 3)))
        return logits


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4),
    )  # fmt: skip


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
        nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 4)
    )


# The parameters by hand: what makes a channel after the last activation; of a sum, what reads it.
NETS = {
    "pre-activation": (Preactivation, {"norm.weight", "norm.bias"}, 8),
    "post-activation": (lambda: Residual(4, 3), {"head.weight"}, 12),
    "no norm": (vgg, {"3.weight", "3.bias"}, 8),
    "depthwise": (depthwise, {"2.weight", "2.bias", "3.weight", "3.bias"}, 8),
    "convolutional head": (convolutional, {"0.weight", "0.bias"}, 8),
    "group norm": (grouped, {"1.weight", "1.bias"}, 8),
}
every_net = pytest.mark.parametrize("name", NETS)


def traced(name: str) -> fx.GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = NETS[name][0]()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.bias, -0.3, 0.3)
                nn.init.uniform_(part.running_mean, -0.3, 0.3)
        return fx.symbolic_trace(net).eval()


@every_net
@torch.no_grad()
def test_a_channel_is_taken_out_where_it_is_made_or_where_it_is_read(name: str) -> None:
    model, images = traced(name), torch.rand((6, *ROW), generator=torch.Generator().manual_seed(2))
    site = find_site(model, ROW, "x")
    slots = find_slots(model, ROW, site, "x")
    assert {slot.parameter for slot in slots} == NETS[name][1]
    assert site.channels == NETS[name][2]
    gone = torch.tensor([0, 3, 5])
    trunk, rest = parts(model, site)
    torch.testing.assert_close(rest(images, trunk(images)), model(images))
    expected = rest(images, trunk(images).index_fill(1, gone, 0.0))
    assert (expected - model(images)).abs().max() > 1e-4
    zero_channels(model, slots, gone)
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    if not slots[0].reads:
        assert parts(model, site)[0](images * 5)[:, gone].abs().max() == 0


class Turned(nn.Module):
    """A sum, flattened with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, images: Tensor) -> Tensor:
        total = torch.relu(self.one(images) + self.two(images))
        logits: Tensor = self.head(total.permute(0, 2, 3, 1).flatten(1))
        return logits


# Flattened with channels last, every fourth column is of the same channel.
def test_the_columns_that_read_a_channel_are_told_whatever_the_layout_they_are_flattened_in() -> None:
    model = fx.symbolic_trace(Turned()).eval()
    (slot,) = find_slots(model, (3, 8, 8), find_site(model, (3, 8, 8), "x"), "x")
    assert slot.owner.tolist() == [0, 1, 2, 3] * 64


def test_a_network_without_convolutions_is_refused() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 4))).eval()
    with pytest.raises(ModelError, match="x needs a convolutional stage"):
        find_site(model, (3, 4, 4), "x")


class Bright(nn.Module):
    """Channel c is the image times its weight; class 1 if what the head makes of them is above 1."""

    def __init__(self, weights: list[float], head: list[float]) -> None:
        super().__init__()
        self.make = nn.Conv2d(1, len(weights), 1, bias=False)
        self.head = nn.Linear(len(weights), 2)
        with torch.no_grad():
            self.make.weight.copy_(torch.tensor(weights)[:, None, None, None])
            self.head.weight.copy_(torch.stack([torch.zeros(len(head)), torch.tensor(head)]))
            self.head.bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.make(images)).mean((2, 3)))
        return logits


def brightness(values: list[float]) -> Labelled:
    images = torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    return Labelled(images, torch.ones(len(values), dtype=torch.int64))


# Weights rise as .1, .2, .4, .8, so channels 2, 0, 3, 1 go in this order. What is left of the sum, times the
# brightness, has to be above 1: at first it is .4 + 1.6 + .1 + .8 = 2.9, then 2.8, 2.4 and 1.6; brightness
# .4 is lost at 2.4 (.96), .6 at 1.6 (.96). Of ten images that is one each.
VALUES = [0.4, 0.6, *[0.875] * 8]


@pytest.mark.parametrize(
    ("budget", "count", "after"), [(0.0, 1, 1.0), (0.05, 1, 1.0), (0.1, 2, 0.9), (0.2, 3, 0.8), (0.9, 3, 0.8)]
)
def test_the_last_number_that_does_not_fall_by_more_than_the_budget_is_kept(
    budget: float, count: int, after: float
) -> None:
    model = fx.symbolic_trace(Bright([0.2, 0.8, 0.1, 0.4], [2.0, 2.0, 1.0, 2.0])).eval()
    images = brightness(VALUES)
    found = choose_channels(model, find_site(model, (1, 4, 4), "x"), images, images, budget)
    assert found.channels.tolist() == [2, 0, 3][:count]
    assert (found.before, found.after) == (1.0, pytest.approx(after))


# .6 - .8 + .4 + 1.2 = 1.4 is above 1; without channel 0 it is .8, and without channel 1 too 1.6 again.
def test_the_scan_ends_at_the_first_number_that_falls_too_far_whatever_comes_later() -> None:
    model = fx.symbolic_trace(Bright([0.1, 0.2, 0.4, 0.8], [6.0, -4.0, 1.0, 1.5])).eval()
    images = brightness([1.0] * 10)
    site = find_site(model, (1, 4, 4), "x")
    one, two = copy_of(model).eval(), copy_of(model).eval()
    slots = find_slots(model, (1, 4, 4), site, "x")
    zero_channels(one, slots, torch.tensor([0]))
    zero_channels(two, slots, torch.tensor([0, 1]))
    assert [accuracy(net, images) for net in (model, one, two)] == [1.0, 0.0, 1.0]
    assert choose_channels(model, site, images, images, 0.1).channels.tolist() == []


@pytest.mark.parametrize("shape", ["residual", "no norm"])
def test_what_was_pruned_is_exactly_zero_after_the_fine_tuning(shape: str) -> None:
    chosen = SHAPES[shape]
    model, supplies = network_of(chosen), supplies_of(chosen)
    done = replace(QUICK, budget=0.5).repair(
        model, supplies, generator=torch.Generator().manual_seed(0), sitting=Sitting()
    )
    assert 1 <= done.facts["pruned_channels"] < done.facts["channels"] == 12
    site = find_site(model, supplies.shape, "x")
    slots = find_slots(model, supplies.shape, site, "x")
    gone = choose_channels(model, site, supplies.train, supplies.held, 0.5).channels
    for slot in slots:
        held = done.model.get_parameter(slot.parameter)
        dead = torch.isin(slot.owner, gone).nonzero().flatten()
        assert held.index_select(slot.axis, dead).abs().max() == 0
        alive = (~torch.isin(slot.owner, gone)).nonzero().flatten()
        assert held.index_select(slot.axis, alive).abs().max() > 0


def test_zeros_outlive_the_folding_of_norms() -> None:
    model = traced("depthwise")
    slots = find_slots(model, ROW, find_site(model, ROW, "x"), "x")
    zero_channels(model, slots, torch.tensor([2]))
    folded = fold_batch_norm(model)
    assert folded.get_parameter("2.weight")[2].abs().max() == 0
    assert folded.get_parameter("2.bias")[2] == 0


@pytest.mark.parametrize("budget", [-0.1, 1.0])
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget: expected a share in \[0, 1\)"):
        FinePruning(budget=budget)
