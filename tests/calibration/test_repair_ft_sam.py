import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from calibration.augmentation import NO_AUGMENTATION  # noqa: E402
from calibration.hooks import Hooks  # noqa: E402
from calibration.recipe import Recipe  # noqa: E402
from calibration.repair.ft_sam import SharpnessAwareFineTuning, ascent  # noqa: E402
from calibration.schedules import Constant  # noqa: E402
from calibration.training import TrainingData, train  # noqa: E402
from tests.calibration.training_subjects import Tiny, bright_or_dark, seeded  # noqa: E402

ONE_STEP = Recipe(
    epochs=1, batch=64, optimiser="sgd", rate=0.1, momentum=0.0, weight_decay=0.0, schedule=Constant(),
    augmentation=NO_AUGMENTATION, precision="float32",
)  # fmt: skip


def test_the_ascent_is_the_papers_formula() -> None:
    # e = rho w^2 g / || |w| g ||, the norm over all layers together, in float64 numpy.
    rng = np.random.default_rng(0)
    weights, gradients = ([rng.normal(size=size) for size in ((4, 3), (4,))] for _ in range(2))
    norm = np.sqrt(sum(((np.abs(w) * g) ** 2).sum() for w, g in zip(weights, gradients, strict=True)))
    got = ascent([torch.tensor(w) for w in weights], [torch.tensor(g) for g in gradients], 2.0)
    for e, w, g in zip(got, weights, gradients, strict=True):
        assert e.numpy() == pytest.approx(2.0 * w**2 * g / norm, rel=1e-9)


def test_the_ascent_is_rho_long_in_shares_of_the_weights() -> None:
    # By hand: w = (1, -2), g = (3, 2): |w| g = (3, 4), norm 5; e = 2 (1 * 3, 4 * 2) / 5, e / |w| of norm 2.
    (step,) = ascent([torch.tensor([1.0, -2.0])], [torch.tensor([3.0, 2.0])], 2.0)
    assert step.tolist() == pytest.approx([1.2, 3.2])
    assert math.hypot(1.2 / 1, 3.2 / 2) == pytest.approx(2.0)


def test_no_gradient_is_no_ascent() -> None:
    (step,) = ascent([torch.ones(3)], [torch.zeros(3)], 2.0)
    assert step.tolist() == [0.0, 0.0, 0.0]


def test_a_step_is_taken_from_where_the_weights_were_by_the_gradient_where_they_were_moved_to() -> None:
    data = bright_or_dark()
    images = data.images.float() / 255

    def gradients(net: nn.Module) -> list[Tensor]:
        loss = functional.cross_entropy(net(images), data.targets)
        return list(torch.autograd.grad(loss, list(net.parameters())))

    by_hand, before = Tiny().train(), Tiny()
    steps = ascent([weight.detach() for weight in by_hand.parameters()], gradients(by_hand), 0.5)
    with torch.no_grad():
        for weight, step in zip(by_hand.parameters(), steps, strict=True):
            weight.add_(step)
    expected = [
        weight - 0.1 * slope for weight, slope in zip(before.parameters(), gradients(by_hand), strict=True)
    ]
    trained = Tiny()
    hooks = Hooks(perturb=SharpnessAwareFineTuning(rho=0.5)._climb)
    train(trained, data, ONE_STEP, generator=seeded(), hooks=hooks)
    for weight, wanted in zip(trained.parameters(), expected, strict=True):
        assert torch.allclose(weight, wanted, atol=1e-5)


def test_the_second_pass_leaves_the_running_statistics_alone() -> None:
    plain, perturbed = Tiny(), Tiny()
    train(plain, bright_or_dark(), ONE_STEP, generator=seeded())
    hooks = Hooks(perturb=SharpnessAwareFineTuning()._climb)
    train(perturbed, bright_or_dark(), ONE_STEP, generator=seeded(), hooks=hooks)
    assert plain.norm.num_batches_tracked == perturbed.norm.num_batches_tracked == 1
    assert torch.equal(plain.norm.running_mean, perturbed.norm.running_mean)
    assert torch.equal(plain.norm.running_var, perturbed.norm.running_var)
    assert perturbed.norm.track_running_stats
    assert not torch.equal(plain.head.weight, perturbed.head.weight)


def test_weights_that_get_no_gradient_are_not_moved() -> None:
    net = Tiny()
    net.head.requires_grad_(False)
    before = net.head.weight.clone()
    train(net, TrainingData(*vars(bright_or_dark()).values()), ONE_STEP, generator=seeded(),
          hooks=Hooks(perturb=SharpnessAwareFineTuning()._climb))  # fmt: skip
    assert torch.equal(net.head.weight, before)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_a_rho_out_of_range_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho"):
        SharpnessAwareFineTuning(rho=rho)
