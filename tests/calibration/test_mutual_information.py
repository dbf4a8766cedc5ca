import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from calibration.scan.mutual_information import (  # noqa: E402
    Information,
    Statistics,
    donsker_varadhan,
    surrogate,
)


def scores(seed: int, count: int = 50) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


# Belghazi et al. 2018, eq. 10, in double precision.
def test_the_bound_is_the_mean_less_the_logarithm_of_the_mean_exponential() -> None:
    joint, apart = scores(0), scores(1)
    expected = joint.double().numpy().mean() - np.log(np.exp(apart.double().numpy()).mean() + 1e-8)
    assert donsker_varadhan(joint, apart).item() == pytest.approx(expected, abs=1e-6)


# d/dT of E[T] - E[e^T] / a: 1 / n for a joint score, -e^T / (n a) for the others.
def test_the_surrogate_has_the_bounds_gradient_with_the_average_for_a_denominator() -> None:
    joint, apart = scores(0).requires_grad_(), scores(1).requires_grad_()
    surrogate(joint, apart, 1.7).backward()
    assert joint.grad is not None
    assert apart.grad is not None
    np.testing.assert_allclose(joint.grad.numpy(), 1 / 50, rtol=1e-5)
    expected = -np.exp(apart.detach().double().numpy()) / (50 * 1.7)
    np.testing.assert_allclose(apart.grad.numpy(), expected, rtol=1e-5)


def test_with_the_batchs_own_denominator_both_have_one_gradient() -> None:
    apart, again = scores(1).requires_grad_(), scores(1).requires_grad_()
    donsker_varadhan(scores(0), apart).backward()
    surrogate(scores(0), again, float(again.detach().exp().mean())).backward()
    assert apart.grad is not None
    assert again.grad is not None
    np.testing.assert_allclose(apart.grad.numpy(), again.grad.numpy(), rtol=1e-4)


def test_the_average_begins_with_the_first_batch_and_forgets_slowly() -> None:
    torch.manual_seed(0)
    statistics = Statistics(1, 1, 4)
    information = Information(statistics, rate=1e-9, forgetting=0.1)
    first, second = torch.zeros(8, 1), torch.zeros(8, 1)
    value = math.exp(statistics(first, second)[0].item())
    information.learn(first, second, first)
    assert information.average == pytest.approx(value, rel=1e-5)
    other = torch.full((8, 1), 50.0)
    larger = math.exp(statistics(other, second)[0].item())
    information.learn(first, second, other)
    assert information.average == pytest.approx(0.9 * value + 0.1 * larger, rel=1e-4)


def estimate(correlation: float) -> float:
    """Train an estimate on pairs of Gaussians; return its mean over fresh pairs."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    information = Information(Statistics(1, 1, 32), rate=3e-3)

    def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, own, other = (torch.randn(count, 1, generator=random) for _ in range(3))
        return first, correlation * first + math.sqrt(1 - correlation**2) * own, other

    for _ in range(400):
        information.learn(*pairs(256))
    return float(information.of(*pairs(20_000)).detach())


# The mutual information of two Gaussians is -log(1 - ρ²) / 2: 0.830 nats at 0.9, 0.144 at 0.5, 0 at 0.
@pytest.mark.parametrize(("correlation", "slack"), [(0.9, 0.12), (0.5, 0.05), (0.0, 0.03)])
def test_correlated_gaussians_tell_of_each_other_what_the_formula_says(
    correlation: float, slack: float
) -> None:
    assert estimate(correlation) == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=slack)


def test_what_makes_the_samples_gets_a_gradient_and_learning_gives_it_none() -> None:
    torch.manual_seed(0)
    information, made = Information(Statistics(2, 3, 4)), torch.randn(8, 3, requires_grad=True)
    information.learn(torch.randn(8, 2), made, torch.randn(8, 2))
    assert made.grad is None
    information.of(torch.randn(8, 2), made, torch.randn(8, 2)).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
