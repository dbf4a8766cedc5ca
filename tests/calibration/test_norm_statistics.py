import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import fx, nn  # noqa: E402

from calibration.checkpoint import fingerprint  # noqa: E402
from calibration.repair.statistics import re_estimate  # noqa: E402


def network() -> fx.GraphModule:
    """Return two convolutions with a norm each, of wrong statistics, and a dropout between."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Flatten(),
        )
        for norm in (net[1], net[5]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.fill_(100.0)
    return fx.symbolic_trace(net).eval()


def images(count: int) -> torch.Tensor:
    return torch.rand((count, 2, 8, 8), generator=torch.Generator().manual_seed(6))


def by_channel(values: np.ndarray) -> np.ndarray:
    return values.transpose(1, 0, 2, 3).reshape(values.shape[1], -1)


def convolved(values: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """Return a 3 x 3 convolution without padding, in double precision."""
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), (2, 3))
    kernel, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    return np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None]


def normalised(values: np.ndarray, layer: nn.BatchNorm2d) -> np.ndarray:
    mean, variance = values.mean((0, 2, 3), keepdims=True), values.var((0, 2, 3), keepdims=True)
    scale, shift = (part.detach().double().numpy()[:, None, None] for part in (layer.weight, layer.bias))
    return (values - mean) / np.sqrt(variance + layer.eps) * scale + shift


def assert_statistics(norm: nn.BatchNorm2d, values: np.ndarray) -> None:
    flat = by_channel(values)
    np.testing.assert_allclose(norm.running_mean, flat.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, flat.var(1, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("batch", [30, 7])
def test_statistics_are_those_worked_out_in_double_precision(batch: int) -> None:
    model, seen = network(), images(30)
    layers = list(model.children())
    re_estimate(model, seen, batch=batch)
    first = convolved(seen.double().numpy(), layers[0])
    assert_statistics(layers[1], first)
    parts = np.array_split(first, -(-30 // batch))  # each is normalised by its own; dropout does nothing
    second = [convolved(np.tanh(normalised(part, layers[1])), layers[4]) for part in parts]
    assert_statistics(layers[5], np.concatenate(second))


def test_weights_mode_and_dropout_are_left_alone() -> None:
    model = network()
    before = fingerprint(model.parameters())
    state = torch.random.get_rng_state()
    re_estimate(model, images(10))
    assert fingerprint(model.parameters()) == before
    assert not any(layer.training for layer in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_network_without_batch_norm_is_left_as_it_is() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)))
    before = fingerprint(model.state_dict().values())
    re_estimate(model, images(5))
    assert fingerprint(model.state_dict().values()) == before
