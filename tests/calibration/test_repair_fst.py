import math

import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from calibration.errors import ModelError  # noqa: E402
from calibration.repair.base import Sitting  # noqa: E402
from calibration.repair.classifier import find_classifier  # noqa: E402
from calibration.repair.fst import FeatureShiftTuning, draw_anew, restore_norm, shifting_loss  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_cross_entropy_and_alpha_times_the_inner_product() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    weight, old = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    # By hand: softmax rows (1/4, 3/4) and (1/2, 1/2); -(ln 3/4 + ln 1/2) / 2 = 0.490415. Inner product
    # 1 + 0 - 3 + 2 = 0 with the weights above; with 6 in the last place 1 + 0 - 3 + 3 = 1.
    assert shifting_loss(logits, torch.tensor([1, 0]), weight, old, 0.2).item() == pytest.approx(0.490415)
    weight[1, 1] = 6.0
    assert shifting_loss(logits, torch.tensor([1, 0]), weight, old, 0.2).item() == pytest.approx(0.690415)


def test_the_norm_is_restored_and_the_direction_kept() -> None:
    weight, old = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), torch.tensor([[6.0, 8.0], [0.0, 0.0]])
    restore_norm(weight, old)
    assert torch.equal(weight.detach(), torch.tensor([[6.0, 0.0], [0.0, 8.0]]))  # norm 5 to norm 10


def test_a_classifier_is_drawn_within_one_over_the_root_of_its_inputs() -> None:
    layer = nn.Conv2d(16, 500, 1)
    draw_anew(layer, seeded())
    for part in (layer.weight, layer.bias):
        assert part.abs().max() <= 0.25
        assert part.abs().max() > 0.24
        assert abs(part.mean().item()) < 0.05


def test_the_new_classifier_has_the_old_ones_norm_and_points_away_from_it() -> None:
    shape = SHAPES["residual"]
    model = network_of(shape)
    made = FeatureShiftTuning(epochs=3, batch=16, precision="float32", alpha=1.0)
    done = made.repair(model, supplies_of(shape), generator=seeded(), sitting=Sitting())
    old, new = model.head.weight, done.model.head.weight
    assert new.norm().item() == pytest.approx(old.norm().item(), rel=1e-5)
    cosine = (new * old).sum() / old.norm() ** 2
    assert cosine < -0.3
    assert done.facts["classifier_cosine"] == pytest.approx(cosine.item(), abs=1e-5)


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        FeatureShiftTuning(alpha=alpha)


CLASSIFIERS = {
    "linear": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)),
    "convolution": nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "normed": nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)),
}


@pytest.mark.parametrize(("name", "place"), [("linear", 2), ("convolution", 1), ("normed", 1)])
def test_the_classifier_is_the_last_layer_that_mixes_values(name: str, place: int) -> None:
    module = fx.symbolic_trace(CLASSIFIERS[name])
    assert find_classifier(module, 5, "it") is module.get_submodule(str(place))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
        nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    ids=["other width", "over space", "no weights"],
)
def test_a_network_without_a_classifier_is_refused(net: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"it needs a last linear layer.* gives 5 numbers"):
        find_classifier(fx.symbolic_trace(net), 5, "it")
