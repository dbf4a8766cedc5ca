import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from training_subjects import QUICK, Tiny, bright_or_dark, seeded  # noqa: E402

from calibration import checkpoint  # noqa: E402
from calibration.augmentation import Augmentation  # noqa: E402
from calibration.errors import DataError, OptionError  # noqa: E402
from calibration.training import Epoch, Hooks, Recipe, TrainingData, train  # noqa: E402

EVERYTHING_DRAWN = dataclasses.replace(QUICK, epochs=4, augmentation=Augmentation(2, True, 2))


class Interrupt:
    """Ctrl-C in the middle of an epoch: after so many batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, images: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return images


def run(recipe: Recipe, path: Path | None, hooks: Hooks | None = None) -> tuple[Tiny, list[Epoch], int]:
    model = Tiny()
    record = train(model, bright_or_dark(), recipe, generator=seeded(), hooks=hooks, checkpoint=path)
    return model, list(record.epochs), record.resumed_after


def interrupted(recipe: Recipe, path: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe, path, Hooks(finish=Interrupt(after)))


@pytest.mark.parametrize("optimiser", ["sgd", "nesterov", "adam"])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does_bit_for_bit(
    optimiser: str, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(EVERYTHING_DRAWN, optimiser=optimiser)
    whole, epochs, _ = run(recipe, None)
    interrupted(recipe, tmp_path / "run.safetensors", after=10)  # 4 batches an epoch: in the third
    resumed, resumed_epochs, resumed_after = run(recipe, tmp_path / "run.safetensors")
    assert resumed_after == 2
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name
    assert [epoch.loss for epoch in resumed_epochs] == [epoch.loss for epoch in epochs]


def test_an_interrupt_in_the_first_epoch_leaves_a_checkpoint_too(tmp_path: Path) -> None:
    whole, _, _ = run(EVERYTHING_DRAWN, None)
    interrupted(EVERYTHING_DRAWN, tmp_path / "run.safetensors", after=1)
    resumed, _, resumed_after = run(EVERYTHING_DRAWN, tmp_path / "run.safetensors")
    assert resumed_after == 0
    assert torch.equal(resumed.head.weight, whole.head.weight)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, epochs, _ = run(QUICK, path)
    again, same_epochs, resumed_after = run(QUICK, path, Hooks(finish=Interrupt(0)))
    assert (resumed_after, same_epochs) == (3, epochs)
    assert torch.equal(again.head.weight, whole.head.weight)


def test_a_training_that_a_hook_ended_stays_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path, Hooks(after_epoch=lambda epoch, _: epoch.number == 1))
    _, epochs, _ = run(QUICK, path)
    assert len(epochs) == 1


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path)
    with pytest.raises(OptionError, match=r"expected recipe .* delete it to train anew"):
        run(dataclasses.replace(QUICK, rate=0.2), path)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path)
    with pytest.raises(OptionError, match="expected images 32, got 64"):
        train(Tiny(), bright_or_dark(32), QUICK, generator=seeded(), checkpoint=path)


def same_count_other_pixels() -> TrainingData:
    return bright_or_dark(seed=1)


def same_images_other_targets() -> TrainingData:
    return TrainingData(bright_or_dark().images, 1 - bright_or_dark().targets)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("data", {"data": same_count_other_pixels()}),
        ("data", {"data": same_images_other_targets()}),
        ("weights", {"model": Tiny(seed=1)}),
        ("generator", {"generator": seeded(1)}),
        ("hooks", {"hooks": Hooks(identity="stamps a patch")}),
    ],
    ids=["pixels", "targets", "weights", "seed", "hooks"],
)
def test_a_checkpoint_of_another_training_is_refused_and_changes_nothing(
    key: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path)
    asked = {"model": Tiny(), "data": bright_or_dark(), "generator": seeded(), **changed}
    model, data = asked.pop("model"), asked.pop("data")
    weights, state = model.head.weight.clone(), asked["generator"].get_state()
    with pytest.raises(OptionError, match=f"expected {key} .* delete it to train anew"):
        train(model, data, QUICK, checkpoint=path, **asked)
    assert torch.equal(model.head.weight, weights)
    assert torch.equal(asked["generator"].get_state(), state)


def test_a_model_of_other_shapes_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path)
    other = Tiny(seed=1)
    other.head = torch.nn.Linear(8, 3)
    before = other.convolution.weight.clone()
    with pytest.raises(
        DataError, match=r"not one of this model: expected head.bias of shape \(3,\), got \(2,\)"
    ):
        train(other, bright_or_dark(), QUICK, generator=seeded(), checkpoint=path)
    assert torch.equal(other.convolution.weight, before)


def test_dropout_goes_on_as_it_would_have_whatever_else_drew_globally(tmp_path: Path) -> None:
    def learn(path: Path | None, hooks: Hooks | None = None) -> torch.Tensor:
        model = torch.nn.Sequential(torch.nn.Dropout(0.5), Tiny())
        train(model, bright_or_dark(), QUICK, generator=seeded(), hooks=hooks, checkpoint=path)
        return model[1].head.weight

    path = tmp_path / "run.safetensors"
    torch.manual_seed(1)
    whole = learn(None)
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        learn(path, Hooks(finish=Interrupt(6)))
    assert torch.equal(learn(path), whole)


def test_an_interrupt_while_a_checkpoint_is_written_leaves_no_part_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        run(QUICK, tmp_path / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with pytest.raises(DataError, match="not one of this model"):
        train(other, bright_or_dark(), QUICK, generator=seeded(), checkpoint=path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(QUICK, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="expected a safetensors file"):
        run(QUICK, path)


@pytest.mark.parametrize(
    ("state", "generator"),
    [(None, seeded().get_state()), ("{", seeded().get_state()), ("{}", torch.zeros(3, dtype=torch.uint8))],
)
def test_a_checkpoint_without_what_it_needs_is_refused(
    state: str | None, generator: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    metadata = {"format": "guard-training-1", **({} if state is None else {"state": state})}
    save_file({"generator": generator}, path, metadata=metadata)
    with pytest.raises(DataError, match="expected state and generator"):
        run(QUICK, path)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a safetensors file"):
        run(QUICK, tmp_path)


def test_other_tensors_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="expected format guard-training-1, got None"):
        run(QUICK, path)


def test_a_checkpoint_lies_alone_in_its_folder(tmp_path: Path) -> None:
    run(QUICK, tmp_path / "new" / "run.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.safetensors"]
