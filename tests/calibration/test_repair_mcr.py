import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, fx, nn  # noqa: E402

from calibration.errors import TooFewImagesError  # noqa: E402
from calibration.repair.base import Sitting, accuracy  # noqa: E402
from calibration.repair.bezier import Curve  # noqa: E402
from calibration.repair.mcr import MCR, furthest  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402

QUICK = {"epochs": 1, "endpoint_epochs": 1, "batch": 16, "precision": "float32", "rate": 0.02}


class Line(nn.Module):
    """Answers w x, for two numbers w."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights], dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def curve_of(start: list[float], end: list[float]) -> Curve:
    return Curve(fx.symbolic_trace(Line(start)), fx.symbolic_trace(Line(end)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_cross_entropy_and_decay_at_the_point() -> None:
    curve = curve_of([2.0, 0.0], [0.0, 4.0])
    curve.t = 0.5  # a quarter of each end and half of the middle (1, 2): the weights are (1, 2)
    loss = MCR(weight_decay=0.1).loss(curve, torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([0]))
    # cross entropy ln(1 + e) of logits 1 and 2 for the first class, and .1 / 2 * (1 + 4)
    assert loss.item() == pytest.approx(1.3132616875 + 0.25, abs=1e-6)
    loss.backward()
    # d/dw = softmax - (1, 0) + .1 w = (-.6310586, .9310586); the middle gets half of it
    expected = [0.5 * -0.6310586, 0.5 * 0.9310586]
    assert curve.middle[0].grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_one_place_is_drawn_for_each_batch_from_the_generator() -> None:
    curve, generator = curve_of([1.0, 0.0], [0.0, 1.0]), seeded()
    hooks = MCR().hooks(curve)
    images, drawn = torch.ones(2, 1, 1, 1), []
    for _ in range(200):
        assert hooks.finish(images, torch.arange(2), generator) is images
        drawn.append(curve.t)
    expected = [float(torch.rand((), generator=again)) for again in [seeded()] for _ in range(200)]
    assert drawn == expected


@pytest.mark.parametrize(("tolerance", "expected"), [(0.0, 0.3), (0.021, 0.6), (0.011, 0.3), (0.5, 1.0)])
def test_the_point_taken_is_the_furthest_that_is_accurate_enough(tolerance: float, expected: float) -> None:
    assert furthest({0.0: 0.88, 0.3: 0.9, 0.6: 0.88, 1.0: 0.8}, tolerance) == expected


def test_a_point_that_is_asked_for_is_taken_and_needs_no_images_to_choose_by() -> None:
    shape = SHAPES["residual"]
    supplies = supplies_of(shape)
    bare = type(supplies)(**{**vars(supplies), "held": supplies.held.take(torch.arange(0))})
    done = MCR(**QUICK, t=0.3).repair(network_of(shape), bare, generator=seeded(), sitting=Sitting())
    assert dict(done.facts) == {"curve_t": 0.3}
    with pytest.raises(TooFewImagesError, match="mcr needs 10 clean images to choose by, got 0"):
        MCR(**QUICK).repair(network_of(shape), bare, generator=seeded(), sitting=Sitting())


def test_without_any_training_the_victim_is_the_point_at_the_start() -> None:
    shape = SHAPES["no norm"]
    model, supplies = network_of(shape), supplies_of(shape)
    done = MCR(**QUICK, t=0.0).repair(model, supplies, generator=seeded(), sitting=Sitting())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(done.model.get_parameter(name), weight)


def test_the_middle_of_the_curve_learns_what_neither_end_knows() -> None:
    shape = SHAPES["residual"]
    supplies = supplies_of(shape)
    options = {**QUICK, "epochs": 12, "endpoint_rate": 1e-6, "t": 0.5}
    done = MCR(**options).repair(network_of(shape), supplies, generator=seeded(), sitting=Sitting())
    before = accuracy(network_of(shape), supplies.held)
    assert before < 0.5
    assert accuracy(done.model, supplies.held) > before + 0.3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("t", 1.1),
        ("tolerance", 1.0),
        ("epochs", 0),
        ("rate", -1.0),
        ("batch", 0),
        ("weight_decay", -0.1),
        ("endpoint_epochs", 0),
        ("endpoint_rate", -0.1),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{option}: expected"):
        MCR(**{option: value})
