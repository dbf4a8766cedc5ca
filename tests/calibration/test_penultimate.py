import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from training_subjects import Tiny

from calibration.scan.base import Bench, Labelled
from calibration.scan.executor import LocalExecutor
from calibration.scan.penultimate import PenultimateUnit, find_head, penultimate, principal_directions


class Scaled(nn.Module):
    """A plain module around another, as a bench's model may be."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images / 2)


class Jumbled(nn.Module):
    """Its head is registered first, and a layer of as many outputs runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)
        self.early = nn.Linear(192, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu_(self.early(images.flatten(1))))


class Convolutional(nn.Module):
    """Its head is a convolution of one pixel, averaged over space after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).relu()).mean((2, 3))


class Headless(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :2]


def images_of(count: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    return Labelled(torch.rand((count, 3, 8, 8), generator=generator), torch.arange(count) % 2)


def bench_of(model: nn.Module, count: int = 23) -> Bench:
    model = model.eval().requires_grad_(False)
    low, high = torch.zeros(3), torch.ones(3)
    return Bench(model, 2, images_of(6, 1), images_of(4, 2), low, high, images_of(count, 0))


def features_of(bench: Bench, chunk: int = 1000) -> np.ndarray:
    found = penultimate(bench, LocalExecutor(bench), "training", chunk=chunk)
    assert found is not None
    return found.features


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_features_are_what_the_head_takes_and_predictions_what_it_gives() -> None:
    bench = bench_of(Tiny())
    assert bench.training is not None
    found = penultimate(bench, LocalExecutor(bench), "training")
    assert found is not None
    logits = bench.model(bench.training.images)
    given = torch.from_numpy(found.features) @ bench.model.head.weight.T + bench.model.head.bias
    torch.testing.assert_close(given, logits)
    assert found.predictions.tolist() == logits.argmax(1).tolist()
    assert found.labels.tolist() == bench.training.labels.tolist()


def test_a_graph_and_a_wrapped_graph_give_the_same_as_the_module() -> None:
    plain = bench_of(Tiny())
    graph = bench_of(fx.symbolic_trace(Tiny().eval()))
    np.testing.assert_array_equal(features_of(graph), features_of(plain))
    wrapped = bench_of(Scaled(fx.symbolic_trace(Tiny().eval())))
    assert find_head(wrapped) is wrapped.model.inner.head


def test_the_head_is_the_layer_that_runs_last_not_the_one_registered_last() -> None:
    bench = bench_of(Jumbled())
    assert find_head(bench) is bench.model.head
    assert (features_of(bench) >= 0).all()


def test_features_under_a_convolutional_head_are_averaged_over_space() -> None:
    bench = bench_of(Convolutional())
    assert bench.training is not None
    expected = bench.model.body(bench.training.images).relu().mean((2, 3)).numpy()
    np.testing.assert_allclose(features_of(bench), expected, rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_how_images_were_parted() -> None:
    bench = bench_of(Tiny())
    np.testing.assert_allclose(features_of(bench, chunk=5), features_of(bench), rtol=1e-5, atol=1e-6)


def test_a_unit_names_its_rows_and_weighs_as_many_images() -> None:
    unit = PenultimateUnit("training", 20, 23)
    assert (unit.key, unit.weight) == ("penultimate-training-20-23", 3)
    assert unit.run(bench_of(Tiny()))["features"].shape == (3, 8)


def test_a_model_without_such_a_layer_has_no_features() -> None:
    bench = bench_of(Headless())
    assert penultimate(bench, LocalExecutor(bench), "clean") is None


def test_a_set_that_is_not_there_is_named() -> None:
    low, high = torch.zeros(3), torch.ones(3)
    bench = Bench(Tiny().eval(), 2, images_of(2, 1), images_of(2, 2), low, high)
    with pytest.raises(ValueError, match="expected a training set, got none"):
        penultimate(bench, LocalExecutor(bench), "training")


def test_no_hooks_are_left_not_even_when_the_model_fails() -> None:
    bench = bench_of(Tiny())
    features_of(bench)
    assert hooks(bench.model) == 0
    wrong = Bench(
        bench.model,
        2,
        bench.clean,
        bench.held,
        bench.low,
        bench.high,
        Labelled(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)),
    )
    with pytest.raises(RuntimeError, match="channels"):
        features_of(wrong)
    assert hooks(bench.model) == 0


def test_principal_directions_are_the_top_right_singular_vectors() -> None:
    matrix = np.random.default_rng(0).normal(size=(30, 6)) @ np.diag([5.0, 4, 3, 2, 1, 0.5])
    directions, strengths = principal_directions(matrix, 3)
    _, expected, vectors = np.linalg.svd(matrix, full_matrices=False)  # provenance: LAPACK's SVD
    np.testing.assert_allclose(strengths, expected[:3])
    np.testing.assert_allclose(np.abs(directions @ vectors[:3].T), np.eye(3), atol=1e-9)
    assert (directions[range(3), np.abs(directions).argmax(1)] > 0).all()


def test_there_are_no_more_directions_than_dimensions() -> None:
    assert principal_directions(np.eye(2), 10)[0].shape == (2, 2)
