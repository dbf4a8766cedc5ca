import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from training_subjects import QUICK, Tiny, bright_or_dark, seeded  # noqa: E402

from calibration.augmentation import Augmentation  # noqa: E402
from calibration.errors import DataError, OptionError  # noqa: E402
from calibration.training import Epoch, Hooks, Recipe, train  # noqa: E402

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


def test_other_tensors_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="expected format guard-training-1, got None"):
        run(QUICK, path)


def test_a_checkpoint_lies_alone_in_its_folder(tmp_path: Path) -> None:
    run(QUICK, tmp_path / "new" / "run.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.safetensors"]
