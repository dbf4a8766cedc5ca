import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.repair.base import copy_of  # noqa: E402
from calibration.repair.sau import (  # noqa: E402
    SharedAdversarialUnlearning,
    divergence,
    misleading_loss,
    unlearning_loss,
)
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402


def test_the_divergence_is_that_of_jensen_and_shannon() -> None:
    # In float64: KL(p, m) / 2 + KL(q, m) / 2 with m the mean of p and q.
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    m = (p + q) / 2
    expected = ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2
    got = divergence(torch.tensor(np.log([p, p])), torch.tensor(np.log([q, p])))
    assert got.tolist() == pytest.approx([expected, 0.0], abs=1e-9)


def test_probabilities_that_share_nothing_are_the_logarithm_of_2_apart() -> None:
    assert divergence(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])).item() == pytest.approx(
        math.log(2)
    )


def test_misleading_counts_some_rows_and_divides_by_all() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    targets = torch.tensor([1, 0])
    rows = torch.tensor([True, False])
    assert misleading_loss(logits, targets, rows).item() == pytest.approx(math.log(3 / 4) / 2)
    assert misleading_loss(logits, targets, ~rows).item() == pytest.approx(math.log(1 / 2) / 2)


def test_unlearning_is_the_logarithm_of_what_is_left_to_other_classes() -> None:
    # Probabilities (1/4, 3/4) and the old answer 1: -ln(1/4) on one row of two; the two halves are equal.
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 0.0]])
    got = unlearning_loss(logits, torch.tensor([1, 0]), torch.tensor([True, False]))
    assert got.item() == pytest.approx(-math.log(1 / 4) / 2, abs=1e-4)


def test_unlearning_of_no_rows_costs_nothing_and_of_certain_ones_is_finite() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    assert unlearning_loss(logits, torch.tensor([0]), torch.tensor([False])).item() == 0.0
    loss = unlearning_loss(logits, torch.tensor([0]), torch.tensor([True]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_perturbations_stay_within_their_bound_of_the_range_and_mislead_both() -> None:
    supplies, old = supplies_of(SHAPES["residual"]), network_of(SHAPES["residual"])
    network = copy_of(old)
    images, labels = supplies.train.images, old(supplies.train.images).argmax(1)
    made = SharedAdversarialUnlearning(search_rate=0.1)
    got = made.shared_examples(network, old, images, labels, torch.full((3, 1, 1), 2.0))
    assert (got - images).abs().max().item() <= 0.4 + 1e-6
    assert (old(got).argmax(1) != labels).float().mean() > 0.5
    assert all(weight.grad is None for weight in network.parameters())


def test_no_search_is_the_largest_change_upwards() -> None:
    supplies, old = supplies_of(SHAPES["residual"]), network_of(SHAPES["residual"])
    made = SharedAdversarialUnlearning(search_steps=0)
    images = supplies.train.images
    got = made.shared_examples(old, old, images, supplies.train.labels, torch.ones(3, 1, 1))
    assert torch.equal(got, images + 0.2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("bound", -0.1), ("search_steps", -1), ("search_rate", math.nan), ("adversarial", -1.0),
     ("sharing", math.inf), ("clean", -1.0), ("unlearning", -1.0), ("epochs", 0)],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SharedAdversarialUnlearning(**{field: value})
