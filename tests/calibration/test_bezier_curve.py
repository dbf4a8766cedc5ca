import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import Tensor, fx, nn  # noqa: E402

from calibration.prediction import predict  # noqa: E402
from calibration.repair.bezier import Curve  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402


class Line(nn.Module):
    """Answers w x, for one number w."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def line(weight: float) -> fx.GraphModule:
    return fx.symbolic_trace(Line(weight))


def test_a_point_and_its_gradient_are_those_worked_out_by_hand() -> None:
    curve = Curve(line(2.0), line(-1.0))
    with torch.no_grad():
        curve.middle[0].fill_(5.0)
    curve.t = 0.3
    answer = curve(torch.full((1, 1, 1, 1), 10.0, dtype=torch.float64))
    # .7^2 * 2 + 2 * .3 * .7 * 5 + .3^2 * -1 = .98 + 2.1 - .09 = 2.99; its slope in M is .42, times x of 10
    assert answer.item() == pytest.approx(29.9, abs=1e-12)
    answer.sum().backward()
    assert curve.middle[0].grad.item() == pytest.approx(4.2, abs=1e-12)


def test_the_middle_starts_halfway_so_that_the_curve_is_a_straight_line() -> None:
    curve = Curve(line(2.0), line(-1.0))
    points = [curve.weights(t)["weight"].item() for t in (0.0, 0.25, 0.5, 1.0)]
    assert points == pytest.approx([2.0, 1.25, 0.5, -1.0], abs=1e-12)


def test_only_the_middle_is_trained_and_the_ends_lie_in_the_checkpoint() -> None:
    shape = SHAPES["residual"]
    curve = Curve(network_of(shape, 1), network_of(shape, 2))
    curve.t = 0.4
    curve(supplies_of(shape).train.images).sum().backward()
    trained = {name for name, weight in curve.named_parameters() if weight.requires_grad}
    assert trained == {f"middle.{place}" for place in range(len(curve.names))}
    assert all(middle.grad is not None for middle in curve.middle)
    assert {"start_0", "end_0", "middle.0"} <= set(curve.state_dict())


@pytest.mark.parametrize(("t", "seed"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_the_curve_are_the_networks_it_joins(t: float, seed: int) -> None:
    shape = SHAPES["no norm"]
    curve, images = Curve(network_of(shape, 1), network_of(shape, 2)), supplies_of(shape).held.images
    expected = predict(network_of(shape, seed), images)
    np.testing.assert_allclose(predict(curve.point(t, images), images), expected, atol=1e-6)


def test_a_point_of_a_network_with_norms_has_statistics_of_its_own() -> None:
    shape = SHAPES["residual"]
    curve, images = Curve(network_of(shape, 1), network_of(shape, 2)), supplies_of(shape).train.images
    point = curve.point(0.5, images)
    stem = nn.functional.conv2d(images, curve.weights(0.5)["stem.weight"], padding=1)
    np.testing.assert_allclose(point.norm.running_mean, stem.mean((0, 2, 3)).detach(), atol=1e-5)
