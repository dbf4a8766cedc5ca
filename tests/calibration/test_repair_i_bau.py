import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from calibration.hooks import Epoch  # noqa: E402
from calibration.repair.i_bau import ImplicitUnlearning, _Rounds, misleading_loss, with_hypergradient  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402


def quadratic() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A of G(d, w) = d'Ad / 2 - d'Bw, B, t of L(d, w) = |d - t|^2 / 2 + |w|^2 / 2, and w; float64."""
    generator = torch.Generator().manual_seed(0)
    a, b, t, w = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 3), (3, 4), (3,), (4,))
    )
    return torch.eye(3, dtype=torch.float64) + a @ a.T / 4, b, t, w.requires_grad_()


def hypergradient(terms: int, response: float) -> tuple[Tensor, Tensor]:
    a, b, t, w = quadratic()
    found = torch.linalg.solve(a, b @ w.detach())

    def outer(d: Tensor) -> Tensor:
        return (d - t).square().sum() / 2 + w.square().sum() / 2

    def inner(d: Tensor) -> Tensor:
        return d @ a @ d / 2 - d @ (b @ w)

    loss = with_hypergradient(outer, inner, found, terms, response)
    assert loss.item() == pytest.approx(outer(found).item())
    (gradient,) = torch.autograd.grad(loss, w)
    return gradient, found


def test_the_hypergradient_of_a_quadratic_problem_is_the_one_known() -> None:
    # d*(w) = A^-1 B w, so dL/dw = w + B' A^-1 (d* - t).
    a, b, t, w = quadratic()
    got, found = hypergradient(400, 0.2)
    assert got.tolist() == pytest.approx((w + b.T @ torch.linalg.solve(a, found - t)).tolist(), rel=1e-6)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_few_terms_are_those_of_the_neumann_series(terms: int) -> None:
    # v_K = sum over k < K of (I - eta A)^k (d - t), and the gradient is w + eta B' v_K.
    a, b, t, w = quadratic()
    got, found = hypergradient(terms, 0.1)
    step = torch.eye(3, dtype=torch.float64) - 0.1 * a
    v = sum(torch.linalg.matrix_power(step, k) @ (found - t) for k in range(terms))
    assert got.tolist() == pytest.approx((w + 0.1 * b.T @ v).tolist(), rel=1e-9)


def test_the_inner_loss_is_less_cross_entropy_and_a_penalty() -> None:
    # By hand: probabilities (1/4, 3/4), true class 1: ln(3/4) = -0.287682; 0.001 * (9 + 16) = 0.025.
    logits = torch.tensor([[0.0, math.log(3.0)]])
    got = misleading_loss(logits, torch.tensor([1]), torch.tensor([3.0, 4.0]), 0.001)
    assert got.item() == pytest.approx(-0.287682 + 0.025, abs=1e-6)


def test_the_perturbation_misleads_on_what_it_was_found_on() -> None:
    supplies, network = supplies_of(SHAPES["residual"]), network_of(SHAPES["residual"])
    rounds = _Rounds(ImplicitUnlearning(batch=16), supplies.train, torch.ones(3, 1, 1))
    images = supplies.train.images
    taken = network(images).argmax(1)
    found = rounds.search(network)
    clean, moved = (torch.nn.functional.cross_entropy(network(x), taken) for x in (images, images + found))
    assert found.shape == images.shape[1:]
    assert moved > clean + 0.1


def test_a_perturbation_lasts_a_round() -> None:
    supplies, network = supplies_of(SHAPES["residual"]), network_of(SHAPES["residual"])
    rounds = _Rounds(ImplicitUnlearning(batch=16), supplies.train, torch.ones(3, 1, 1))
    rounds.objective(network, supplies.train.images[:16], supplies.train.labels[:16])
    first = rounds.found
    rounds.objective(network, supplies.train.images[16:32], supplies.train.labels[16:32])
    assert rounds.found is first
    rounds.forget(Epoch(1, 0.0, 0.0, 0.0), network)
    assert rounds.found is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("rounds", 0), ("terms", 0), ("share", 0.0), ("share", 1.5), ("penalty", -1.0), ("response", math.nan),
     ("search_rate", math.inf), ("batch", 0), ("rate", -1.0)],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        ImplicitUnlearning(**{field: value})
