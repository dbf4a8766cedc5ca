from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from benchmarks.demo.data import load_clean_images  # noqa: E402
from calibration.batch_norm import batch_norm_state, fold_batch_norm, insert_batch_norm  # noqa: E402
from calibration.model_source import read_model  # noqa: E402
from calibration.onnx_import import import_onnx  # noqa: E402
from tests.calibration.families import folded_proto, images  # noqa: E402

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo"
SMALL = (3, 16, 16)


def gap(one: nn.Module, two: nn.Module, batch: torch.Tensor) -> float:
    with torch.no_grad():
        return float((one.eval()(batch) - two.eval()(batch)).abs().max())


def folded(name: str) -> fx.GraphModule:
    """A network that an exporter has folded its batch norm into."""
    return import_onnx(folded_proto(name), f"{name}.onnx")


def test_the_demo_model_is_partly_folded_and_an_identity_mends_it() -> None:
    module = import_onnx(read_model(DEMO / "model.onnx").model, "demo")
    batch = torch.from_numpy(load_clean_images()[0][:256]).permute(0, 3, 1, 2).float() / 255
    state = batch_norm_state(module, (3, 32, 32))
    assert (len(state.kept), len(state.bare), state.verdict) == (7, 6, "partly folded")
    assert state.bare[0] == "group1.0.conv1"
    grown = insert_batch_norm(module, batch)
    assert len(batch_norm_state(grown, (3, 32, 32)).kept) == 13
    assert gap(module, grown, batch) < 1e-4
    assert gap(module, fold_batch_norm(grown), batch) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_batch_norm", "mobilenet_v3", "shufflenet"])
def test_a_folded_network_answers_the_same_with_batch_norm_and_folded_again(name: str) -> None:
    module, batch = folded(name), images(name, 40)
    assert batch_norm_state(module, batch.shape[1:]).verdict == "folded or never there"
    grown = insert_batch_norm(module, batch)
    assert batch_norm_state(grown, batch.shape[1:]).verdict == "kept"
    again = fold_batch_norm(grown)
    assert not [layer for layer in again.modules() if isinstance(layer, nn.BatchNorm2d)]
    other = images(name, 7)
    assert gap(module, grown, other) < 1e-4
    assert gap(module, again, other) < 1e-4


def test_statistics_are_those_of_the_clean_images() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    batch = torch.rand(300, *SMALL, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = module.get_submodule("0")(batch)
    norm = insert_batch_norm(module, batch).get_submodule("0_norm")
    mean, variance = given.mean((0, 2, 3)), given.var((0, 2, 3), unbiased=False)
    assert torch.allclose(norm.bias, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, variance, atol=1e-5)
    assert torch.allclose(norm.weight, (variance + norm.eps).sqrt(), atol=1e-5)


def test_a_network_with_batch_norm_put_back_trains_where_the_folded_one_diverges() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(64, *SMALL, generator=generator)
    labels = torch.randint(0, 4, (64,), generator=generator)

    def trained(module: nn.Module) -> float:
        optimizer = torch.optim.SGD(module.train().parameters(), lr=0.5, momentum=0.9)
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(batch), labels)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    layers = [
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
    ]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1600, 4))
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * (2 / max(weight[0].numel(), 9)) ** 0.5
            )
    module = fx.symbolic_trace(net)
    grown = insert_batch_norm(module, batch)
    bare, normed = trained(module), trained(grown)
    assert normed < 1.0 < bare or not np.isfinite(bare)


def test_convolutions_that_never_had_batch_norm_are_left_alone() -> None:
    """Those of one pixel, those that cut patches, those before another norm, those that give the logits."""

    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.group = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
            self.gate, self.patches, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 2, 2), nn.Conv1d(8, 2, 1)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            maps = self.group(self.stem(batch))
            maps = maps * torch.sigmoid(self.gate(maps.mean((2, 3), keepdim=True)))
            return self.head(torch.flatten(self.patches(maps), 2)).mean(2)

    state = batch_norm_state(fx.symbolic_trace(Others()), SMALL)
    assert (state.verdict, state.bare) == ("none", ())


def test_folding_leaves_a_norm_before_its_convolution() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    module = fx.symbolic_trace(net)
    batch = torch.rand(16, *SMALL)
    module.train()(batch)
    small = fold_batch_norm(module)
    assert [type(layer).__name__ for layer in small.children()] == ["BatchNorm2d", "Conv2d", "ReLU"]
    assert gap(module, small, batch) < 1e-5


class Twice(nn.Module):
    """Calls one convolution twice, with a norm after each call or with none."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 1)
        self.norms = nn.ModuleList(norms)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        for norm in self.norms:
            maps = norm(self.body(maps)).relu()
        return self.head(maps).mean((2, 3))


def test_a_convolution_called_twice_is_neither_given_a_norm_nor_folded() -> None:
    batch = torch.rand((8, 3, 10, 10), generator=torch.Generator().manual_seed(0))
    bare = fx.symbolic_trace(Twice(nn.Identity(), nn.Identity()))
    assert batch_norm_state(bare, (3, 10, 10)).bare == ("stem",)
    assert gap(bare, insert_batch_norm(bare, batch), batch) < 1e-5
    normed = Twice(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    normed.train()(batch)
    assert gap(normed, fold_batch_norm(fx.symbolic_trace(normed)), batch) < 1e-5
