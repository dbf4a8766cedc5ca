"""Distillation: the loss against the formula, what is dropped, and that a backdoor is not passed on."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import fx, nn

from calibration.attacks.measure import asr
from calibration.augmentation import NO_AUGMENTATION
from calibration.labelled import Labelled
from calibration.prediction import predict
from calibration.recipe import Recipe
from calibration.repair.base import Sitting, accuracy, stamped
from calibration.repair.distillation import Distillation, distilling, divergence, without_disputed
from calibration.training import TrainingData, train
from tests.calibration.backdoored_nets import CLASSES, SIDE, TARGET
from tests.calibration.repair_corner import attacked, corner_supplies, corner_trigger, seeded

QUICK = {"epochs": 20, "batch": 20, "rate": 0.05, "precision": "float32"}


def perceptron(seed: int = 0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    for weight in net.parameters():
        nn.init.uniform_(weight, -0.2, 0.2, generator=seeded(seed))
    return net


@cache
def poisoned_set() -> tuple[Labelled, torch.Tensor]:
    """Striped images, every eighth with a bright corner and the target's label; which those are."""
    clean = corner_supplies(400).train
    marked = (torch.arange(400) % 8 == 0) & (clean.labels != TARGET)
    images = torch.where(marked[:, None, None, None], stamped(corner_trigger(), clean.images), clean.images)
    return Labelled(images, clean.labels.masked_fill(marked, TARGET)), marked


@cache
def victim() -> fx.GraphModule:
    model, (data, _) = fx.symbolic_trace(perceptron()), poisoned_set()
    recipe = Recipe(15, 20, rate=0.05, precision="float32", augmentation=NO_AUGMENTATION)
    train(model, TrainingData(data.images, data.labels), recipe, generator=seeded())
    return model


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_the_loss_is_the_formula_in_double_precision(temperature: float) -> None:
    student, teacher = (np.random.default_rng(seed).normal(0, 3, (7, 5)) for seed in (0, 1))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    got = divergence(torch.tensor(student).float(), torch.tensor(teacher).float(), temperature)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_two_even_odds_by_hand() -> None:
    # KL((1/2, 1/2) || (3/4, 1/4)) = ln 2 - ln 3 / 2, times 4 at T = 2
    student = torch.tensor([[2 * np.log(3.0), 0.0]], dtype=torch.float32)
    got = divergence(student, torch.zeros(1, 2), 2.0)
    assert float(got) == pytest.approx(4 * (np.log(2) - np.log(3) / 2), rel=1e-5)


def test_gradients_keep_their_size_at_high_temperatures() -> None:
    # Hinton et al., eq. 4: at a high T the gradient is (s - t) / k of logits that sum to 0, times T^2 / T^2
    student = torch.tensor([[1.0, -1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 2.0, -2.0]])
    divergence(student, teacher, 500.0).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=5e-3)


def test_labels_are_not_looked_at_and_the_teacher_gets_no_gradient() -> None:
    teacher, student = perceptron(1), perceptron(2)
    images = corner_supplies().train.images[:8]
    losses = [distilling(teacher, 2.0)(student, images, torch.full((8,), label)) for label in (0, 4)]
    assert losses[0] == losses[1] == divergence(student(images), teacher(images), 2.0)
    losses[0].backward()
    assert all(weight.grad is None for weight in teacher.parameters())


def test_images_that_the_two_take_for_different_classes_are_dropped_whatever_their_label() -> None:
    def answering(classes: list[int]) -> nn.Module:
        table = nn.Embedding.from_pretrained(torch.eye(3)[classes])
        return nn.Sequential(nn.Flatten(0), Numbers(), table)

    labelled = Labelled(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([2, 1, 0, 0]))
    kept = without_disputed(answering([0, 1, 2, 0]), answering([0, 2, 2, 1]), labelled)
    assert kept.images.flatten().tolist() == [0, 2]
    assert kept.labels.tolist() == [2, 0]


class Numbers(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.long()


def test_the_backdoor_is_not_passed_on_and_what_the_network_knew_is() -> None:
    supplies = corner_supplies(400)
    assert attacked(victim(), supplies) > 0.95
    done = Distillation(**QUICK).repair(victim(), supplies, generator=seeded(), sitting=Sitting())
    assert attacked(done.model, supplies) < 0.1
    assert accuracy(done.model, supplies.held) > 0.95
    assert [stage.name for stage in done.stages] == ["distil"]


def test_with_the_training_set_its_poison_is_dropped_and_the_rest_learned() -> None:
    data, marked = poisoned_set()
    supplies = corner_supplies(400, poisoned=data)
    done = Distillation(fine_tune_epochs=3, **QUICK).repair(
        victim(), supplies, generator=seeded(), sitting=Sitting()
    )
    assert [stage.name for stage in done.stages] == ["distil", "fine-tune"]
    assert done.facts["training_images"] == 400
    assert 0.9 * marked.sum() <= done.facts["disputed_images"] <= 1.5 * marked.sum()
    predictions = predict(done.model, stamped(corner_trigger(), supplies.held.images)).argmax(1)
    assert asr(predictions.numpy(), supplies.held.labels.numpy(), corner_trigger()) < 0.1
    assert accuracy(done.model, supplies.held) > 0.95


def test_no_passes_over_the_training_set_leave_the_second_step_out() -> None:
    supplies = corner_supplies(poisoned=poisoned_set()[0])
    bare = dataclasses.replace(supplies, poisoned=None)
    quick = {**QUICK, "epochs": 1}
    first = Distillation(fine_tune_epochs=0, **quick).repair(
        victim(), supplies, generator=seeded(), sitting=Sitting()
    )
    second = Distillation(**quick).repair(victim(), bare, generator=seeded(), sitting=Sitting())
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))


def test_the_student_begins_anew_or_as_the_victim() -> None:
    supplies, still = corner_supplies(), {**QUICK, "rate": 0.0, "epochs": 1, "weight_decay": 0.0}
    fresh, same = (
        Distillation(start=start, **still).repair(victim(), supplies, generator=seeded(), sitting=Sitting())
        for start in ("fresh", "victim")
    )
    pairs = zip(victim().parameters(), fresh.model.parameters(), same.model.parameters(), strict=True)
    for before, anew, kept in pairs:
        assert torch.equal(before, kept)
        assert not torch.equal(before, anew)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"fine_tune_epochs": -1}, {"epochs": 0}])
def test_an_option_out_of_range_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Distillation(**wrong)
