import pytest

torch = pytest.importorskip("torch")

import math  # noqa: E402
from dataclasses import replace  # noqa: E402
from typing import Any  # noqa: E402

from torch import Tensor, fx, nn  # noqa: E402

from calibration.augmentation import NO_AUGMENTATION  # noqa: E402
from calibration.errors import DataError, TooFewImagesError  # noqa: E402
from calibration.prediction import predict  # noqa: E402
from calibration.repair.anti_backdoor_learning import (  # noqa: E402
    AntiBackdoorLearning,
    Trap,
    _described,
    isolate,
    losses_of,
    trapped,
)
from calibration.repair.base import Labelled, RepairResult, Sitting, StageRecord, Supplies, accuracy  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402

CLASSES, SIDE, TARGET = 4, 8, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, seed: int, strength: float = 0.12) -> Labelled:
    """Return noise with one row a little brighter, by its class: far harder to see than a trigger."""
    generator = seeded(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.7 * torch.rand((count, 1, SIDE, SIDE), generator=generator)
    images[torch.arange(count), 0, labels] += strength
    return Labelled(images, labels)


def stamped(images: Tensor) -> Tensor:
    marked = images.clone()
    marked[:, :, -2:, -2:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    return marked


def poisoned_set(count: int = 600, strength: float = 0.12) -> tuple[Labelled, Tensor]:
    """Return a training set in which every tenth image has the trigger and the target label, and which."""
    clean = drawn(count, 1, strength)
    bad = torch.arange(count) % 10 == 3
    images = torch.where(bad[:, None, None, None], stamped(clean.images), clean.images)
    return Labelled(images, clean.labels.masked_fill(bad, TARGET)), bad


def network() -> fx.GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * SIDE**2, CLASSES),
        )
    return fx.symbolic_trace(net).eval()


def supplies(poisoned: Labelled | None) -> Supplies:
    none = drawn(0, 0)
    return Supplies(
        none, none, CLASSES, (1, SIDE, SIDE), torch.zeros(1), torch.ones(1), poisoned=poisoned,
        augmentation=NO_AUGMENTATION,
    )  # fmt: skip


QUICK = AntiBackdoorLearning(
    share=0.05,
    isolation_epochs=2,
    training_epochs=10,
    unlearning_epochs=10,
    unlearning_rate=0.02,
    rate=0.1,
    batch=32,
    cutout=0,
    precision="float32",
)


def run(repair: AntiBackdoorLearning, poisoned: Labelled | None) -> RepairResult:
    return repair.repair(network(), supplies(poisoned), generator=seeded(), sitting=Sitting())


@pytest.mark.parametrize(
    ("trap", "expected", "slopes"),
    [  # of losses .1, .4 and 1.0 about γ = .75, in double precision; mean .5
        ("sample", (-0.1 - 0.4 + 1.0) / 3, [-1 / 3, -1 / 3, 1 / 3]),
        ("batch", -0.5, [-1 / 3] * 3),
        ("flooding", (0.75 - 0.5) + 0.75, [-1 / 3] * 3),
    ],
)
def test_traps_are_those_worked_out_by_hand(trap: Trap, expected: float, slopes: list[float]) -> None:
    losses = torch.tensor([0.1, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
    value = trapped(losses, trap, 0.75)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert losses.grad.tolist() == pytest.approx(slopes, abs=1e-12)


@pytest.mark.parametrize("trap", ["batch", "flooding"])
def test_above_gamma_a_trap_on_the_mean_is_descended_as_ever(trap: Trap) -> None:
    losses = torch.tensor([0.1, 2.0], dtype=torch.float64, requires_grad=True)
    value = trapped(losses, trap, 0.5)
    value.backward()
    assert value.item() == pytest.approx(1.05, abs=1e-12)
    assert losses.grad.tolist() == pytest.approx([0.5, 0.5], abs=1e-12)


def test_the_lowest_losses_are_isolated_in_whole_and_at_least_one() -> None:
    losses = torch.tensor([3.0, 0.1, 2.0, 0.2, 0.1])
    assert isolate(losses, 0.4).tolist() == [False, True, False, False, True]
    assert isolate(losses, 0.01).tolist() == [False, True, False, False, False]


def test_losses_do_not_depend_on_batches() -> None:
    poisoned, _ = poisoned_set(520)
    model = network()
    whole = predict(model, poisoned.images, batch=7).double().log_softmax(1)
    expected = -whole[torch.arange(520), poisoned.labels]
    torch.testing.assert_close(losses_of(model, poisoned).double(), expected, atol=1e-5, rtol=1e-5)


class Looking(Sitting):
    """Keeps what each stage was given to learn."""

    def train(self, stage: str, model: nn.Module, data: Labelled, *given: Any, **named: Any) -> StageRecord:
        SEEN[stage] = data
        return super().train(stage, model, data, *given, **named)


SEEN: dict[str, Labelled] = {}


@pytest.mark.parametrize("trap", ["sample", "batch"])
def test_what_is_isolated_is_poisoned_and_the_rest_is_learned(trap: Trap) -> None:
    poisoned, _ = poisoned_set(strength=0.06)
    done = replace(QUICK, trap=trap, training_epochs=1, unlearning_epochs=1).repair(
        network(), supplies(poisoned), generator=seeded(), sitting=Looking()
    )
    isolated, others = SEEN["unlearn"].images, SEEN["relearn"].images
    marked = (isolated == stamped(isolated)).flatten(1).all(1)
    assert marked.float().mean() >= 0.9  # a tenth by chance
    assert len(isolated) == done.facts["isolated"] == 30
    assert len(others) == 570
    assert done.facts["isolated_label"] == TARGET
    assert done.facts["isolated_label_share"] >= 0.9
    assert done.facts["isolated_loss"] < done.facts["other_loss"]
    assert f"labelled {TARGET}" in done.notes[0]


def test_the_network_it_gives_is_accurate_and_the_trigger_does_little() -> None:
    poisoned, _ = poisoned_set()
    done, fresh = run(QUICK, poisoned), drawn(400, 9)
    others = fresh.take(fresh.labels != TARGET)
    hit = (predict(done.model, stamped(others.images)).argmax(1) == TARGET).float().mean()
    plain = run(replace(QUICK, unlearning_rate=0.0), poisoned)
    before = (predict(plain.model, stamped(others.images)).argmax(1) == TARGET).float().mean()
    assert accuracy(done.model, fresh) >= 0.55  # .25 by chance, .67 if nothing is unlearned
    assert before >= 0.9
    assert hit <= 0.1


def test_the_ascent_ends_at_its_bound() -> None:
    hooks = QUICK._ascent(CLASSES)
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]], requires_grad=True)
    value = hooks.objective(nn.Identity(), logits, torch.tensor([1, 1]))
    value.backward()
    # of uniform logits the loss is ln 4; that of the second, about 9, is cut to 2 ln 4
    assert value.item() == pytest.approx(-(math.log(4) + 2 * math.log(4)) / 2, abs=1e-6)
    assert logits.grad[1].tolist() == [0.0] * 4
    assert logits.grad[0].tolist() == pytest.approx([-0.125, 0.375, -0.125, -0.125], abs=1e-6)


def test_statistics_stay_while_the_isolated_are_unlearned() -> None:
    assert [recipe.frozen_statistics for recipe in QUICK.recipes(NO_AUGMENTATION)] == [False, False, True]


def test_nothing_of_the_victim_but_its_architecture_is_used() -> None:
    shape = SHAPES["residual"]
    quick = replace(QUICK, isolation_epochs=1, training_epochs=1, unlearning_epochs=1)
    done = [
        quick.repair(network_of(shape, seed), supplies_of(shape), generator=seeded(), sitting=Sitting())
        for seed in (1, 2)
    ]
    first, second = (torch.cat([weight.flatten() for weight in one.model.parameters()]) for one in done)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("labels", "share", "words"),
    [
        ([1, 1, 1, 1], 1.0, "100% of the isolated images are labelled 1: an attack's target, or a class"),
        ([1, 0, 1, 2], 0.5, "many labels, none more often than 50%"),
    ],
)
def test_notes_say_no_more_than_the_isolated_labels_tell(labels: list[int], share: float, words: str) -> None:
    mask = torch.tensor([True, True, True, True, False])
    facts, notes = _described(torch.tensor([0.1, 0.2, 0.3, 0.4, 2.0]), mask, torch.tensor(labels))
    assert facts["isolated_label_share"] == share
    assert facts["isolated_label"] == 1
    assert (facts["isolated"], facts["other_loss"]) == (4, 2.0)
    assert facts["isolated_loss"] == pytest.approx(0.25)
    assert words in notes[0]


def test_no_set_or_too_small_a_one_is_refused() -> None:
    with pytest.raises(DataError, match="anti_backdoor_learning needs the training set"):
        run(QUICK, None)
    with pytest.raises(TooFewImagesError, match="anti_backdoor_learning needs 20 images"):
        run(QUICK, drawn(19, 0))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gamma", 0.0),
        ("share", 1.0),
        ("share", 0.0),
        ("bound", 0.0),
        ("isolation_epochs", 0),
        ("training_epochs", 0),
        ("unlearning_epochs", 0),
        ("rate", -0.1),
        ("unlearning_rate", -0.1),
        ("batch", 0),
        ("weight_decay", -0.1),
        ("cutout", -1),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{option}: expected"):
        AntiBackdoorLearning(**{option: value})
