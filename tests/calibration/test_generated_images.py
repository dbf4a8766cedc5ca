from dataclasses import replace
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from calibration.errors import DataError, OptionError  # noqa: E402
from calibration.scan.base import Bench, Labelled  # noqa: E402
from calibration.scan.executor import LocalExecutor  # noqa: E402
from calibration.scan.generated import (  # noqa: E402
    Generation,
    ImageBatch,
    generate_images,
    norm_distance,
    variation,
)
from tests.calibration.backdoored_nets import CLASSES, SIDE, TARGET, CornerNet, striped  # noqa: E402

SHAPE = (1, SIDE, SIDE)
LOW, HIGH = torch.zeros(1), torch.ones(1)
QUICK = Generation(steps=40, batch=20, jitter=0, flip=False)
"""The hand-made network tells classes by single pixels, so no image of it may be moved."""


class Normed(CornerNet):
    """The hand-made network behind a batch norm that leaves the numbers, with statistics of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, eps=0.0)
        mean, variance = striped(50)[0].mean(), striped(50)[0].var()
        self.norm.running_mean.fill_(mean)
        self.norm.running_var.fill_(variance)
        self.norm.weight.data.fill_(variance.sqrt())
        self.norm.bias.data.fill_(mean)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(images))


@cache
def made(seed: int = 0, count: int = 20, kind: type[CornerNet] = CornerNet) -> Labelled:
    return generate_images(kind(), SHAPE, CLASSES, LOW, HIGH, count=count, seed=seed, options=QUICK)


def test_images_are_of_all_classes_in_turn_and_the_model_is_sure_of_them() -> None:
    found, model = made(), CornerNet()
    assert found.labels.tolist() == [0, 1, 2, 3, 4] * 4
    told = model(found.images).softmax(1)
    assert torch.equal(told.argmax(1), found.labels)
    assert told.max(1).values.mean() > 0.9
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_images_of_a_class_look_like_the_class() -> None:
    images, labels = striped(50)
    centres = torch.stack([images[labels == label].mean(0) for label in range(CLASSES)])
    others = torch.tensor([label != TARGET for label in made().labels])
    distances = torch.cdist(made().images[others].flatten(1), centres.flatten(1))
    assert torch.equal(distances.argmin(1), made().labels[others])


def test_the_trigger_is_in_no_image_of_another_class_and_still_works_on_them() -> None:
    others = made().images[made().labels != TARGET]
    assert others[..., -2:, -2:].mean((1, 2, 3)).max() < 0.6
    stamped = others.clone()
    stamped[..., -2:, -2:] = 1
    assert (CornerNet()(stamped).argmax(1) == TARGET).all()


def test_one_seed_gives_the_same_images_and_another_gives_others() -> None:
    torch.manual_seed(5)
    again = generate_images(CornerNet(), SHAPE, CLASSES, LOW, HIGH, count=20, seed=0, options=QUICK)
    assert torch.equal(again.images, made().images)
    assert not torch.equal(made(seed=1).images, made().images)


def test_the_model_is_left_as_it_was() -> None:
    model = Normed().train().requires_grad_(True)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    generate_images(model, SHAPE, CLASSES, LOW, HIGH, count=10, seed=0, options=QUICK)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


class Failing(Normed):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        super().forward(images)
        raise RuntimeError("no answer")


def test_hooks_are_gone_if_the_model_fails() -> None:
    model = Failing()
    with pytest.raises(RuntimeError, match="no answer"):
        generate_images(model, SHAPE, CLASSES, LOW, HIGH, count=10, seed=0, options=QUICK)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_images_are_in_the_models_own_range_and_look_the_same_there() -> None:
    class Ranged(CornerNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward((images + 4) / 8)

    found = generate_images(Ranged(), SHAPE, CLASSES, LOW - 4, HIGH * 4, count=20, seed=0, options=QUICK)
    assert found.images.min() >= -4
    assert found.images.max() > 3
    np.testing.assert_allclose(((found.images + 4) / 8).numpy(), made().images.numpy(), atol=1e-2)


# What goes into the norm has mean and variance of the images that its statistics are of.
def test_where_there_is_batch_norm_its_statistics_are_met() -> None:
    without, matched = (
        generate_images(
            Normed(), SHAPE, CLASSES, LOW, HIGH, count=20, seed=0,
            options=replace(QUICK, steps=80, smoothness=0.0, statistics=weight),
        ).images for weight in (0.0, 10.0)
    )  # fmt: skip
    norm = Normed().norm
    assert norm_distance(norm, matched) < 0.03
    assert norm_distance(norm, matched) < norm_distance(norm, without) / 2


# Means 2 and 0, variances 1 and 4, against running 0 and 0, 1 and 1: sqrt(4 + 0) + sqrt(0 + 9).
def test_the_distance_from_a_batch_norm_is_the_norm_of_means_and_of_variances() -> None:
    features = torch.tensor([[[[1.0, 3.0]], [[-2.0, 2.0]]]])
    assert norm_distance(nn.BatchNorm2d(2), features).item() == pytest.approx(5.0)
    assert norm_distance(nn.BatchNorm2d(2, track_running_stats=False), features).item() == 0


# Against double precision: the mean squared difference of neighbours along each axis.
def test_variation_is_the_mean_squared_difference_of_neighbours() -> None:
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    exact = images.double().numpy()
    expected = (np.diff(exact, axis=3) ** 2).mean() + (np.diff(exact, axis=2) ** 2).mean()
    assert variation(images).item() == pytest.approx(expected, rel=1e-5)


def test_smoothness_makes_images_smooth() -> None:
    rough, smooth = (
        generate_images(
            CornerNet(), SHAPE, CLASSES, LOW, HIGH, count=5, seed=0,
            options=replace(QUICK, steps=60, smoothness=weight),
        ).images for weight in (0.0, 30.0)
    )  # fmt: skip
    assert variation(smooth) < variation(rough) / 2


def unit(number: int = 0, seed: int = 0, **options: object) -> ImageBatch:
    return ImageBatch(SHAPE, number, replace(QUICK, **options), seed)  # type: ignore[arg-type]


def bench() -> Bench:
    none = Labelled(torch.empty((0, *SHAPE)), torch.empty(0, dtype=torch.int64))
    return Bench(CornerNet(), CLASSES, none, none, LOW, HIGH)


def test_units_have_keys_of_their_own_and_give_numbers() -> None:
    units = [unit(), unit(1), unit(seed=1), unit(rate=0.1)]
    assert len({one.key for one in units}) == 4
    assert units[0].weight == (2 * 40 + 1) * 20
    arrays = unit(batch=7).run(bench())
    assert arrays["images"].shape == (7, *SHAPE)
    assert arrays["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert unit(number=1, batch=7).run(bench())["labels"].tolist() == [2, 3, 4, 0, 1, 2, 3]


class Counting(LocalExecutor):
    def run(self, units):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        asked.append([one.number for one in units])
        return super().run(units)


asked: list[list[int]] = []


def test_units_go_to_the_executor_and_more_are_asked_for_only_if_some_are_missing() -> None:
    asked.clear()
    found = generate_images(
        CornerNet(), SHAPE, CLASSES, LOW, HIGH, count=33, seed=0, options=QUICK, executor=Counting(bench())
    )
    assert asked == [[0, 1]]
    assert found.labels.tolist() == [row % CLASSES for row in range(33)]


def test_moving_and_mirroring_leave_every_pixel_somewhere() -> None:
    shares = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(0)
    moved = [unit(jitter=2, flip=True)._moved(shares, random) for _ in range(20)]
    assert all(torch.equal(one.flatten().sort().values, shares.flatten().sort().values) for one in moved)
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 10
    assert torch.equal(unit()._moved(shares, random), shares)


class Unwilling(CornerNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) - 1e3 * (torch.arange(CLASSES) == 2)


def test_a_class_that_the_model_never_gives_is_named() -> None:
    with pytest.raises(DataError, match=r"the classes \[2\]; expected some of each"):
        generate_images(Unwilling(), SHAPE, CLASSES, LOW, HIGH, count=10, seed=0, options=QUICK)


def test_no_images_or_options_without_meaning_are_refused() -> None:
    with pytest.raises(DataError, match="count: expected one image or more, got 0"):
        generate_images(CornerNet(), SHAPE, CLASSES, LOW, HIGH, count=0, seed=0)
    with pytest.raises(OptionError, match="batch: expected 2 or more, got 1"):
        Generation(batch=1)
    with pytest.raises(OptionError, match="rate: expected above 0, got 0"):
        Generation(rate=0.0)
