import dataclasses

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402
from training_subjects import QUICK, Tiny, bright_or_dark, seeded  # noqa: E402

from calibration.augmentation import Augmentation  # noqa: E402
from calibration.errors import DataError  # noqa: E402
from calibration.schedules import Constant  # noqa: E402
from calibration.training import (  # noqa: E402
    DivergedError,
    Hooks,
    Recipe,
    TrainingData,
    predict,
    train,
)

OPTIMISERS = ("sgd", "nesterov", "adam")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_can_be_learned_is_learned(optimiser: str, precision: str) -> None:
    model, data = Tiny(), bright_or_dark()
    recipe = dataclasses.replace(QUICK, epochs=10, rate=0.05, optimiser=optimiser, precision=precision)
    record = train(model, data, recipe, generator=seeded())
    assert record.epochs[-1].loss < record.epochs[0].loss / 2
    held = bright_or_dark(seed=1)
    assert (predict(model, held.images).argmax(1) == held.targets).all()


PEERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.8, weight_decay=0.05),
    "nesterov": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.8, weight_decay=0.05, nesterov=True),
    "adam": lambda weights: torch.optim.Adam(weights, 0.1, betas=(0.8, 0.9), weight_decay=0.05),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_steps_are_those_of_a_loop_written_by_hand(optimiser: str) -> None:
    model, twin, data = Tiny(), Tiny(), bright_or_dark(16)
    recipe = dataclasses.replace(
        QUICK,
        optimiser=optimiser,
        momentum=0.8,
        second_momentum=0.9,
        weight_decay=0.05,
        label_smoothing=0.2,
        schedule=Constant(),
    )
    record = train(model, data, recipe, generator=seeded())
    peer, losses = PEERS[optimiser](twin.parameters()), []
    for _ in range(3):
        smooth = torch.full((16, 2), 0.1).scatter(1, data.targets[:, None], 0.9)
        loss = functional.cross_entropy(twin(data.images / 255), smooth)
        losses.append(loss.item())
        peer.zero_grad()
        loss.backward()
        peer.step()
    assert [epoch.loss for epoch in record.epochs] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-3, atol=1e-4)


def test_weights_are_left_in_channels_last_order() -> None:
    model = Tiny()
    train(model, bright_or_dark(), QUICK, generator=seeded())
    assert model.convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_images_are_augmented_before_they_are_finished() -> None:
    white = TrainingData(torch.full((16, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(16) % 2)
    black: list[int] = []

    def finish(images: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        black.append(int((images == 0).sum()))
        return torch.ones_like(images)

    recipe = dataclasses.replace(QUICK, augmentation=Augmentation(padding=2, flip=False))
    train(Tiny(), white, recipe, generator=seeded(), hooks=Hooks(finish=finish))
    assert min(black) > 0


def test_what_does_not_fill_a_batch_is_left_out_of_an_epoch() -> None:
    sizes: list[int] = []

    def finish(images: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes.append(len(images))
        return images

    recipe = dataclasses.replace(QUICK, epochs=1)
    train(Tiny(), bright_or_dark(47), recipe, generator=seeded(), hooks=Hooks(finish=finish))
    assert sizes == [16, 16]


def test_one_seed_is_one_training() -> None:
    first, second, third = Tiny(), Tiny(), Tiny()
    recipe = dataclasses.replace(QUICK, augmentation=Augmentation(2, True, 3))
    for model, seed in ((first, 0), (second, 0), (third, 1)):
        train(model, bright_or_dark(), recipe, generator=seeded(seed))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


def test_global_seeds_have_no_say() -> None:
    models = Tiny(), Tiny()
    for model, seed in zip(models, (1, 2), strict=True):
        torch.manual_seed(seed)
        train(model, bright_or_dark(), QUICK, generator=seeded())
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_one_hot_targets_train_as_class_numbers_do() -> None:
    hard, soft = Tiny(), Tiny()
    data = bright_or_dark()
    train(hard, data, QUICK, generator=seeded())
    train(
        soft, TrainingData(data.images, functional.one_hot(data.targets).float()), QUICK, generator=seeded()
    )
    torch.testing.assert_close(weights(hard), weights(soft))


def test_soft_targets_are_what_the_model_comes_to_say() -> None:
    data = bright_or_dark()
    targets = torch.tensor([[0.7, 0.3], [0.4, 0.6]])[data.targets]
    model = Tiny()
    train(
        model,
        TrainingData(data.images, targets),
        dataclasses.replace(QUICK, epochs=60),
        generator=seeded(),
    )
    said = torch.softmax(predict(model, data.images), 1)
    assert (said - targets).abs().mean() < 0.05


def test_floats_train_as_the_8_bit_images_they_are() -> None:
    eight, floats = Tiny(), Tiny()
    data = bright_or_dark()
    train(eight, data, QUICK, generator=seeded())
    train(floats, TrainingData(data.images.float() / 255, data.targets), QUICK, generator=seeded())
    assert torch.equal(weights(eight), weights(floats))


def test_every_row_is_seen_once_an_epoch_and_the_finish_hook_knows_which() -> None:
    data, seen = bright_or_dark(48), []

    def finish(images: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert torch.equal(images, data.images[rows] / 255)
        seen.append(rows)
        return images

    train(Tiny(), data, dataclasses.replace(QUICK, epochs=1), generator=seeded(), hooks=Hooks(finish=finish))
    assert torch.cat(seen).sort().values.tolist() == list(range(48))
    assert [len(rows) for rows in seen] == [16, 16, 16]


def test_what_the_finish_hook_returns_is_trained_on() -> None:
    data, model = bright_or_dark(), Tiny()

    def swap(images: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return 1 - images

    train(model, data, dataclasses.replace(QUICK, epochs=10), generator=seeded(), hooks=Hooks(finish=swap))
    assert (predict(model, 255 - data.images).argmax(1) == data.targets).all()


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    sizes: list[int] = []

    def finish(images: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes.append(len(images))
        return images

    train(Tiny(), bright_or_dark(10), QUICK, generator=seeded(), hooks=Hooks(finish=finish))
    assert sizes == [10, 10, 10]


def test_an_objective_takes_the_place_of_cross_entropy() -> None:
    model = Tiny()
    before = weights(model)

    def objective(network: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 0 * network(images).sum() + 2

    recipe = dataclasses.replace(QUICK, weight_decay=0.0)
    record = train(model, bright_or_dark(), recipe, generator=seeded(), hooks=Hooks(objective=objective))
    assert [epoch.loss for epoch in record.epochs] == [2.0] * 3  # the mean of four steps
    assert torch.equal(weights(model), before)


def test_a_hook_may_change_weights_after_each_step_and_end_the_training() -> None:
    model, steps = Tiny(), []

    def after_step(network: torch.nn.Module) -> None:
        steps.append(1)
        with torch.no_grad():
            network.get_submodule("head").weight.fill_(3.0)

    hooks = Hooks(after_step=after_step, after_epoch=lambda epoch, _: epoch.number == 2)
    record = train(model, bright_or_dark(), QUICK, generator=seeded(), hooks=hooks)
    assert (record.stopped, len(record.epochs), len(steps)) == (True, 2, 8)
    assert (model.head.weight == 3).all()


def test_parameters_that_want_no_gradient_stay() -> None:
    model = Tiny()
    model.convolution.requires_grad_(False)
    before = model.convolution.weight.clone()
    train(model, bright_or_dark(), QUICK, generator=seeded())
    assert torch.equal(model.convolution.weight, before)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_others_move(frozen: bool) -> None:
    model = Tiny()
    recipe = dataclasses.replace(QUICK, frozen_statistics=frozen)
    train(model, bright_or_dark(), recipe, generator=seeded())
    assert bool((model.norm.running_mean == 0).all()) == frozen


def test_the_model_is_left_in_evaluation_mode() -> None:
    model = Tiny()
    train(model, bright_or_dark(), QUICK, generator=seeded())
    assert not model.training


def test_a_loss_that_is_no_number_ends_training_with_what_to_do() -> None:
    recipe = dataclasses.replace(QUICK, rate=1e30)
    with pytest.raises(
        DivergedError, match=r"expected a finite loss, got nan in epoch \d of 3 .* lower the rate"
    ):
        train(Tiny(), bright_or_dark(), recipe, generator=seeded())


def test_training_leaves_the_global_generators_where_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), Tiny())
    before = torch.get_rng_state()
    train(model, bright_or_dark(), QUICK, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_drops_out_anew() -> None:
    dropped: list[torch.Tensor] = []

    class Watched(torch.nn.Dropout):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            dropped.append(super().forward(torch.ones_like(images)))
            return images

    train(torch.nn.Sequential(Watched(), Tiny()), bright_or_dark(), QUICK, generator=seeded())
    assert not torch.equal(dropped[0], dropped[4])  # four steps an epoch


# They would be read as values from 0 to 255.
def test_integers_of_more_than_8_bits_are_no_images() -> None:
    with pytest.raises(DataError, match=r"expected uint8 or float32 images, got torch.int64"):
        TrainingData(torch.zeros(2, 1, 4, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))


def test_data_without_a_target_for_each_image_are_refused() -> None:
    with pytest.raises(DataError, match="got 3 images and 2 targets"):
        TrainingData(torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch", 0), ("rate", -1.0), ("momentum", 1.0), ("label_smoothing", 1.0)],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected .* got {value}$"):
        Recipe(**{field: value})


# A name that is not known would be trained as plain gradient descent, or in float32.
@pytest.mark.parametrize(("field", "value"), [("optimiser", "adamw"), ("precision", "bf16")])
def test_a_recipe_with_an_unknown_name_is_refused(field: str, value: str) -> None:
    recipe = Recipe()
    object.__setattr__(recipe, field, value)  # past the type checks that run in tests alone
    with pytest.raises(ValueError, match=f"^{field}: expected one of .*, got '{value}'$"):
        recipe.__post_init__()


def test_predictions_do_not_depend_on_how_they_are_batched() -> None:
    model, images = Tiny(), bright_or_dark(37).images
    whole = predict(model, images, batch=37)
    torch.testing.assert_close(predict(model, images, batch=5), whole)
    assert whole.shape == (37, 2)


def test_predicting_leaves_modes_and_statistics_alone() -> None:
    model = Tiny().train()
    model.norm.eval()
    predict(model, bright_or_dark().images)
    assert (model.training, model.norm.training, model.head.training) == (True, False, True)
    assert (model.norm.running_mean == 0).all()


def test_frozen_statistics_stay_though_a_hook_predicts_after_each_step() -> None:
    model, images = Tiny(), bright_or_dark().images

    def look(network: torch.nn.Module) -> None:
        predict(network, images)

    recipe = dataclasses.replace(QUICK, frozen_statistics=True)
    train(model, bright_or_dark(), recipe, generator=seeded(), hooks=Hooks(after_step=look))
    assert (model.norm.running_mean == 0).all()


def test_bfloat16_predictions_are_close_and_come_as_float32() -> None:
    model, images = Tiny(), bright_or_dark().images
    rough = predict(model, images, precision="bfloat16")
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, predict(model, images), rtol=0.05, atol=0.05)


def test_nothing_is_shown_where_no_person_watches(capfd: pytest.CaptureFixture[str]) -> None:
    train(Tiny(), bright_or_dark(), QUICK, generator=seeded(), progress="tiny")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_network_learns_what_the_plain_one_does() -> None:
    plain, compiled = Tiny(), Tiny()
    train(plain, bright_or_dark(), QUICK, generator=seeded())
    train(compiled, bright_or_dark(), dataclasses.replace(QUICK, compiled=True), generator=seeded())
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_learns_from_the_batches_that_a_cpu_sees() -> None:
    on_cpu, on_gpu = Tiny(), Tiny().cuda()
    recipe = dataclasses.replace(QUICK, augmentation=Augmentation(2, True, 3))
    for model in (on_cpu, on_gpu):
        train(model, bright_or_dark(), recipe, generator=seeded())
    torch.testing.assert_close(weights(on_gpu).cpu(), weights(on_cpu), rtol=1e-2, atol=1e-3)
    assert predict(on_gpu, bright_or_dark().images).device.type == "cpu"
