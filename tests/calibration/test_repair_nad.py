from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import fx  # noqa: E402

from calibration.attacks.measure import asr  # noqa: E402
from calibration.augmentation import NO_AUGMENTATION, Augmentation  # noqa: E402
from calibration.errors import OptionError  # noqa: E402
from calibration.prediction import predict  # noqa: E402
from calibration.recipe import Recipe  # noqa: E402
from calibration.repair.attention import Attending, map_loss  # noqa: E402
from calibration.repair.base import (  # noqa: E402
    Labelled,
    RepairResult,
    Sitting,
    Supplies,
    accuracy,
    copy_of,
    stamped,
)
from calibration.repair.nad import NeuralAttentionDistillation  # noqa: E402
from calibration.repair.teacher import fine_tuned_teacher  # noqa: E402
from calibration.stages import find_stages  # noqa: E402
from tests.contract.repair_subjects import SHAPES, Shape, network_of, supplies_of  # noqa: E402

SHAPE = Shape(train=192, held=96)
STEPS = 39
"""Of an epoch: 2,500 images, 64 a step."""


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rates(recipe: Recipe) -> list[float]:
    """The rate at the first and at the last step of each epoch."""
    ends = [step for epoch in range(recipe.epochs) for step in (epoch * STEPS, epoch * STEPS + STEPS - 1)]
    return [recipe.rate * recipe.schedule.factor(step, recipe.epochs * STEPS) for step in ends]


def quick(**options: Any) -> NeuralAttentionDistillation:
    usual = {"epochs": 4, "teacher_epochs": 2, "batch": 16, "precision": "float32", "cutout": 0, "rate": 0.1}
    return NeuralAttentionDistillation(**(usual | options))


@cache
def supplies() -> Supplies:
    return replace(supplies_of(SHAPE), augmentation=NO_AUGMENTATION)


@cache
def victim() -> fx.GraphModule:
    """A network trained on images of which every seventh is stamped, and labelled as the trigger wants it."""
    model, clean, (trigger, *_) = copy_of(network_of(SHAPE)), supplies().train, supplies().triggers
    images, labels = clean.images.clone(), clean.labels.clone()
    images[::7], labels[::7] = stamped(trigger, images[::7]), 1
    recipe = Recipe(epochs=16, batch=16, rate=0.05, precision="float32", augmentation=NO_AUGMENTATION)
    Sitting().train("poison", model, Labelled(images, labels), recipe, generator=seeded())
    return model


@cache
def repaired(*betas: float) -> RepairResult:
    made = quick(epochs=10, teacher_epochs=5, betas=betas)
    return made.repair(victim(), supplies(), generator=seeded(), sitting=Sitting())


def success(model: fx.GraphModule) -> float:
    held, (trigger, *_) = supplies().held, supplies().triggers
    found = predict(model, stamped(trigger, held.images)).argmax(1).numpy()
    return asr(found, held.labels.numpy(), trigger)


def apart(model: fx.GraphModule, teacher: fx.GraphModule) -> float:
    """How far a network's attention is from its teacher's on held images."""
    stages = find_stages(model, supplies().shape)
    with torch.no_grad():
        _, seen, wanted = Attending.of(model, teacher, stages)(supplies().held.images)
    return float(map_loss(seen, wanted, (1.0, 1.0)))


def test_the_student_and_the_teacher_train_at_the_published_rates() -> None:
    nad = NeuralAttentionDistillation()
    assert rates(nad.recipe(Augmentation())) == pytest.approx([0.1] * 4 + [0.01] * 36)
    assert rates(nad.teacher_recipe(Augmentation())) == pytest.approx([0.1] * 4 + [0.01] * 16)
    recipe = nad.recipe(Augmentation())
    assert (recipe.batch, recipe.optimiser, recipe.momentum, recipe.weight_decay) == (
        64,
        "nesterov",
        0.9,
        1e-4,
    )
    assert recipe.augmentation == Augmentation(padding=4, flip=True, cutout=2)
    assert nad.betas == (500.0, 1000.0, 1000.0)


def test_it_takes_a_backdoor_out_of_a_small_network() -> None:
    result = repaired(500.0, 1000.0)
    assert success(victim()) > 0.9
    assert success(result.model) < 0.3
    assert accuracy(result.model, supplies().held) >= accuracy(victim(), supplies().held) - 0.05
    assert [stage.name for stage in result.stages] == ["teacher", "distil"]
    assert [stage.images for stage in result.stages] == [5 * 192, 10 * 192]


def test_the_betas_draw_the_students_attention_to_the_teachers() -> None:
    recipe = quick(teacher_epochs=5).teacher_recipe(NO_AUGMENTATION)
    teacher, _ = fine_tuned_teacher(victim(), supplies(), recipe, generator=seeded(), sitting=Sitting())
    assert apart(repaired(500.0, 1000.0).model, teacher) < 0.5 * apart(repaired(0.0, 0.0).model, teacher)


def test_a_distillation_begun_with_other_betas_is_not_gone_on_with(tmp_path: Path) -> None:
    model, few = network_of(SHAPES["residual"]), supplies_of(SHAPES["residual"])
    quick(epochs=1, teacher_epochs=1).repair(model, few, generator=seeded(), sitting=Sitting(tmp_path))
    other = quick(epochs=1, teacher_epochs=1, betas=(1.0, 2.0))
    with pytest.raises(OptionError, match=r"checkpoint distil.safetensors: expected hooks nad \(1.0, 2.0\)"):
        other.repair(model, few, generator=seeded(), sitting=Sitting(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("betas", ()),
        ("betas", (1.0, -1.0)),
        ("epochs", 0),
        ("teacher_epochs", 0),
        ("drops", (0.5, 0.5)),
        ("teacher_drops", (1.0,)),
        ("rate", -0.1),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: expected"):
        NeuralAttentionDistillation(**{option: value})  # type: ignore[arg-type]
