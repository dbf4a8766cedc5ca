import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from scipy.fft import dct, dctn  # noqa: E402

from calibration.attacks.inverted import Inverted  # noqa: E402
from calibration.scan.forms import FORMS, Bounds, cosines  # noqa: E402

CASES = [
    ((1, 9, 12), [0.0], [1.0]),
    ((3, 11, 7), [-2.1, -1.9, -1.0], [2.6, 2.4, 3.0]),
    ((3, 8, 8), [0.0] * 3, [255.0] * 3),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bounds_of(low: list[float], high: list[float]) -> Bounds:
    return Bounds(torch.tensor(low), torch.tensor(high))


def large(name: str, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Parts of one trigger, far enough from the start that every clause of the formula counts."""
    return [20 * part[None] for part in FORMS[name].begin(shape, seeded(1))]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("shape", "low", "high"), CASES)
def test_a_form_stamps_as_the_attack_made_of_it(
    name: str, shape: tuple[int, int, int], low: list[float], high: list[float]
) -> None:
    bounds, parts = bounds_of(low, high), large(name, shape)
    images = bounds.low[:, None, None] + torch.rand((4, *shape), generator=seeded()) * bounds.span
    applied = FORMS[name].apply(parts, images[None], bounds)[0].numpy()
    arrays = FORMS[name].arrays(parts, shape, bounds)
    attack = Inverted(0, None, low=bounds.low.numpy(), high=bounds.high.numpy(), **arrays)
    span = float(bounds.span.max())
    np.testing.assert_allclose(applied, attack.stamp(images.numpy()), atol=2e-5 * span)
    assert np.abs(applied - images.numpy()).max() > 0.05 * span
    below, above = applied - bounds.low[:, None, None].numpy(), bounds.high[:, None, None].numpy() - applied
    assert min(below.min(), above.min()) > -1e-6 * span


@pytest.mark.parametrize("name", FORMS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    shape, form = (3, 9, 12), FORMS[name]
    parts = [part[None].requires_grad_() for part in form.begin(shape, seeded())]
    images = 0.2 + 0.6 * torch.rand((1, 4, *shape), generator=seeded())
    stamped = form.apply(parts, images, bounds_of([0.0] * 3, [1.0] * 3))
    loss = (stamped * torch.rand(shape, generator=seeded(2))).sum() + form.size(parts, shape).sum()
    for gradient in torch.autograd.grad(loss, parts):
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", FORMS)
def test_a_trigger_does_not_depend_on_those_beside_it(name: str) -> None:
    shape, bounds = (3, 9, 12), bounds_of([0.0] * 3, [1.0] * 3)
    ones = [FORMS[name].begin(shape, seeded(seed)) for seed in range(3)]
    images = torch.rand((3, 2, *shape), generator=seeded())
    together = FORMS[name].apply([torch.stack(rows) for rows in zip(*ones, strict=True)], images, bounds)
    alone = FORMS[name].apply([part[None] for part in ones[1]], images[1:2], bounds)
    torch.testing.assert_close(together[1:2], alone)


def test_a_patch_is_as_large_as_the_sum_of_its_mask() -> None:
    mask = torch.tensor([0.0, math.log(3), -100.0, 100.0]).view(1, 1, 2, 2)  # 1/2, 3/4, 0, 1
    assert FORMS["patch"].size([mask, torch.zeros(1, 3, 2, 2)], (3, 2, 2)).item() == pytest.approx(2.25)


def test_an_addition_is_as_large_as_its_root_mean_square() -> None:
    added = torch.tensor([0.3, 0.4, 0.0, 0.0]).view(1, 1, 2, 2)
    assert FORMS["addition"].size([added], (1, 2, 2)).item() == pytest.approx(255 * 0.25)


def test_a_wave_is_as_large_as_its_amplitudes_over_the_channels() -> None:
    coefficients = torch.zeros(1, 2, 4, 6)
    coefficients[0, :, 1, 2], coefficients[0, 0, 0, 5] = torch.tensor([3.0, 4.0]), -2.0
    assert FORMS["waves"].size([coefficients], (2, 4, 6)).item() == pytest.approx(7, abs=1e-4)


def test_a_pure_cosine_is_one_wave() -> None:
    pure = 0.1 * torch.cos(math.pi * (torch.arange(12) + 0.5) * 3 / 12).expand(1, 9, 12)
    coefficients = torch.from_numpy(dctn(pure.numpy().astype(np.float64), axes=(1, 2), norm="ortho")).float()
    bounds = bounds_of([0.0], [2.0])
    added = FORMS["waves"].arrays([coefficients[None]], (1, 9, 12), bounds)["addition"]
    np.testing.assert_allclose(added, 2 * pure.numpy(), atol=1e-6)
    norm = float(pure.square().sum().sqrt())
    assert FORMS["waves"].size([coefficients[None]], (1, 9, 12)).item() == pytest.approx(norm, abs=3e-4)


def test_a_constant_displacement_is_as_large_as_its_length() -> None:
    grid = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    assert FORMS["warp"].size([grid], (1, 32, 64)).item() == pytest.approx(5)
    displacement = FORMS["warp"].arrays([grid], (1, 32, 64), bounds_of([0.0], [1.0]))["displacement"]
    np.testing.assert_allclose(displacement[:, 3, 3], [6, 4], rtol=1e-5)  # twice as wide as high


@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_the_matrix_of_cosines_is_scipys_and_orthonormal(length: int) -> None:
    expected = dct(np.eye(length), axis=0, norm="ortho")
    np.testing.assert_allclose(cosines(length).numpy(), expected, atol=2e-6)
    np.testing.assert_allclose((cosines(length) @ cosines(length).T).numpy(), np.eye(length), atol=1e-5)


def test_forms_are_named_as_in_the_table() -> None:
    assert {name: form.name for name, form in FORMS.items()} == {name: name for name in FORMS}
