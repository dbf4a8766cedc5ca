"""What guided unlearning seeks, weighs and learns, against values worked out by hand."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, fx, nn  # noqa: E402

from calibration.attacks.measure import asr  # noqa: E402
from calibration.augmentation import NO_AUGMENTATION  # noqa: E402
from calibration.errors import DataError, ModelError, OptionError  # noqa: E402
from calibration.labelled import Labelled  # noqa: E402
from calibration.prediction import predict  # noqa: E402
from calibration.progress import Progress  # noqa: E402
from calibration.recipe import Recipe  # noqa: E402
from calibration.repair import seeking  # noqa: E402
from calibration.repair.base import Sitting, Supplies, accuracy, stamped  # noqa: E402
from calibration.repair.guided_unlearning import GuidedUnlearning, divergence  # noqa: E402
from calibration.repair.perturbations import (  # noqa: E402
    Perturbations,
    Range,
    joined,
    reflected_in_glass,
    sine_waves,
)
from calibration.repair.seeking import Search  # noqa: E402
from calibration.repair.suspects_file import found_once  # noqa: E402
from calibration.repair.suspicion import (  # noqa: E402
    Suspects,
    Suspicion,
    both,
    gains_of,
    suspect,
    weights_of,
)
from calibration.repair.windows import likely_windows, steepest_windows  # noqa: E402
from calibration.training import TrainingData, train  # noqa: E402
from tests.contract.repair_subjects import Shape, network_of, supplies_of  # noqa: E402


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbations(labels: list[int], rates: list[float], family: str = "patch") -> Perturbations:
    count = len(labels)
    return Perturbations(
        family,
        torch.ones(count, 1, 2, 2),
        torch.zeros(count, 1, 2, 2),
        torch.tensor(labels),
        torch.tensor(rates),
    )


def test_the_divergence_is_that_of_the_formula() -> None:
    """KL of (3/4, 1/4) from (1/2, 1/2) = 3/4 log 3/2 + 1/4 log 1/2, in nats; equal answers diverge by 0."""
    taught = torch.log(torch.tensor([[0.75, 0.25], [0.9, 0.1]]))
    answers = torch.stack([torch.zeros(2), taught[1] + 7.0])
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert divergence(taught, answers).item() == pytest.approx(expected, abs=1e-6)


def test_a_label_gains_what_it_is_reached_better_than_the_runner_up() -> None:
    family = perturbations([0, 0, 1, 2], [0.9, 0.5, 0.4, 0.1])
    assert gains_of(family, 3).tolist() == pytest.approx([0.5, 0.1, 0.0, 0.0], abs=1e-6)


def test_two_labels_that_are_reached_alike_gain_nothing() -> None:
    assert gains_of(perturbations([0, 1, 2], [0.6, 0.6, 0.2]), 3).tolist() == [0.0, 0.0, 0.0]


def test_unlearning_goes_by_the_square_of_what_is_gained_and_a_share_to_what_moves_most() -> None:
    """Gains .5 and .1 in one family, none in the other: 25 : 1. The floor goes to labels by the square of
    their best rates, .81 + .16 and .09 + .09, and to a label's own by the fourth power."""
    families = [perturbations([0, 0, 1], [0.9, 0.5, 0.4]), perturbations([1, 2], [0.3, 0.3])]
    plain, floored = (torch.cat(weights_of(families, 3, floor)) for floor in (0.0, 0.5))
    assert plain.tolist() == pytest.approx([25 / 26, 1 / 26, 0, 0, 0], abs=1e-5)
    first = 0.81 * 0.9**4 / (0.9**4 + 0.5**4)
    moves = torch.tensor([first, 0.81 - first, 0.16, 0.09, 0.09]) / 1.15
    assert (2 * floored - plain).tolist() == pytest.approx(moves.tolist(), abs=1e-4)
    assert float(floored.sum()) == pytest.approx(1.0, abs=1e-5)


def test_each_of_two_searches_has_half_of_the_unlearning() -> None:
    first = Suspects(0, {"patch": 1.0}, perturbations([0, 1], [0.9, 0.1]), torch.tensor([0.75, 0.25]), 7)
    second = Suspects(2, {"wave": 1.0}, perturbations([2], [0.5], "wave"), torch.tensor([1.0]), 5)
    found = both(first, second)
    assert found.weights.tolist() == pytest.approx([0.375, 0.125, 0.5])
    assert (found.label, found.shares, found.images) == (2, {"wave": 1.0}, 5)
    assert found.perturbations.labels.tolist() == [0, 1, 2]


def spot_of(top: int, left: int) -> Callable[[Tensor], Tensor]:
    """Return a network that answers 1 to four bright pixels at one place, each alone doing nothing."""

    def logits(images: Tensor) -> Tensor:
        all_bright = images[:, :, top : top + 2, left : left + 2].flatten(1).amin(1)
        return torch.stack([torch.full_like(all_bright, 0.3), 20 * (all_bright - 0.3).relu()], 1)

    return logits


def test_patches_tried_all_over_find_the_place_that_no_gradient_shows() -> None:
    dark = 0.1 * torch.rand((4, 1, 8, 8), generator=seeded(1))
    network = spot_of(5, 1)
    asked = dark.clone().requires_grad_(True)
    network(asked)[:, 1].sum().backward()
    assert asked.grad is not None
    assert float(asked.grad.abs().max()) == 0.0
    found = likely_windows(network, dark, 4, 1, generator=seeded(), most=16).of(torch.tensor([1]), 1)
    assert found.masks[0, 0].nonzero().min(0).values.tolist() == [4, 0]
    assert float(found.patches[0, 0, 5:7, 1:3].min()) > 0.3
    assert float((found.patches * (1 - found.masks)).abs().max()) == 0.0


def test_the_steepest_windows_lie_apart_and_where_the_slopes_are() -> None:
    slopes = torch.zeros(2, 1, 8, 8)
    slopes[0, 0, 1, 1], slopes[0, 0, 6, 6], slopes[1, 0, 6, 0] = 3.0, -2.0, 1.0
    found = steepest_windows(slopes, 2, 2, seeded())
    assert found.masks.shape == (4, 1, 8, 8)
    assert [float(found.masks[row, 0, *place]) for row, place in ((0, (1, 1)), (1, (6, 6)), (2, (6, 0)))] == [
        1.0
    ] * 3
    assert found.masks.flatten(1).sum(1).tolist() == [4.0] * 4


def test_part_of_an_image_is_kept_something_is_added_and_the_rest_clipped() -> None:
    one = Perturbations(
        "patch",
        torch.tensor([[[[1.0, 0.5], [0.0, 1.0]]]]),
        torch.tensor([[[[0.1, 0.25], [0.75, 2.0]]]]),
        torch.tensor([0]),
        torch.tensor([1.0]),
    )
    put = one.put(torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]]), torch.tensor([0]))
    assert put.flatten().tolist() == pytest.approx([0.6, 0.5, 0.75, 1.0])


def test_sets_that_are_joined_keep_their_order() -> None:
    both = joined([perturbations([0], [0.1]), perturbations([2, 1], [0.2, 0.3])], "all")
    assert (both.family, both.labels.tolist()) == ("all", [0, 2, 1])
    assert both.take(torch.tensor([2, 0])).rates.tolist() == pytest.approx([0.3, 0.1])


def test_a_range_goes_from_0_to_1_and_back() -> None:
    ends = Range(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 10.0]))
    images = torch.tensor([-2.0, 5.0])[None, :, None, None].expand(1, 2, 2, 2)
    units = ends.unit(images)
    assert units[0, :, 0, 0].tolist() == [0.0, 0.5]
    assert torch.equal(ends.full(units), images)


def test_waves_come_in_every_direction_once_and_in_two_phases() -> None:
    """Frequencies up to 2 of 8 pixels: 2 across alone, and 5 across for each of 1 and 2 down."""
    waves = sine_waves((3, 8, 8), 0.2)
    assert waves.shape == (2 * (2 + 5 + 5), 3, 8, 8)
    across = 0.2 * np.sin(2 * np.pi * np.arange(8) / 8)
    np.testing.assert_allclose(waves[0, 1, 3].numpy(), across, atol=1e-6)
    np.testing.assert_allclose(waves[1, 0, 5].numpy(), 0.2 * np.cos(2 * np.pi * np.arange(8) / 8), atol=1e-6)


def test_a_reflection_is_the_mean_over_three_by_three_pixels() -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 9.0
    assert reflected_in_glass(image)[0, 0, 1:4, 1:4].tolist() == [[1.0] * 3] * 3
    assert torch.equal(reflected_in_glass(torch.full((1, 2, 4, 4), 0.25)), torch.full((1, 2, 4, 4), 0.25))


class Sides(nn.Module):
    """Tells which half is brighter; an upper left corner of 2 x 2 that is white is a third class."""

    def forward(self, images: Tensor) -> Tensor:
        side = images[..., :4].mean((1, 2, 3)) - images[..., 4:].mean((1, 2, 3))
        corner = images[:, :, :2, :2].mean((1, 2, 3))
        return torch.stack([side, -side, 4 * (corner - 0.85)], 1) * 20


def test_a_patch_that_leads_to_one_label_is_what_is_suspected() -> None:
    images = 0.3 + 0.2 * torch.rand((64, 1, 8, 8), generator=seeded(1))
    images[::2, ..., :4] += 0.25
    images[1::2, ..., 4:] += 0.25
    ends = Range(torch.zeros(1), torch.ones(1))
    options = Suspicion(noise=0.05, shade=0.05, wave=0.01, patch=0.25, steps=8, floor=0.0)
    found = suspect(Sides(), images, ends, 3, options, generator=seeded())
    assert found.label == 2
    assert set(found.perturbations.labels.tolist()) == {2}
    assert found.shares["patch"] > 0.9
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-5)
    masks = found.perturbations.keep[found.weights.argmax()]
    assert masks[0, :2, :2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert int((masks == 0).sum()) == 4


class Constant(nn.Module):
    """Says the same of every image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * 0 + torch.tensor([1.0, 0.0])


def test_where_nothing_moves_the_network_something_is_unlearned_all_the_same() -> None:
    images = torch.rand((16, 1, 8, 8), generator=seeded(1))
    found = suspect(
        Constant(), images, Range(torch.zeros(1), torch.ones(1)), 2, Suspicion(steps=1), generator=seeded()
    )
    assert len(found.perturbations)
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-5)


def backdoored() -> tuple[fx.GraphModule, Supplies]:
    """A small network that learned that a trigger means class 1."""
    supplies = supplies_of(Shape(train=400, held=100))
    images, labels = supplies.train.images.clone(), supplies.train.labels.clone()
    images[::7], labels[::7] = stamped(supplies.triggers[0], images[::7]), 1
    model = network_of(Shape())
    recipe = Recipe(epochs=30, batch=32, rate=0.1, precision="float32", augmentation=NO_AUGMENTATION)
    train(model, TrainingData(images, labels), recipe, generator=seeded(2))
    return model, dataclasses.replace(supplies, augmentation=NO_AUGMENTATION)


def rate_of_success(model: nn.Module, supplies: Supplies) -> float:
    (trigger,) = supplies.triggers
    predictions = predict(model, stamped(trigger, supplies.held.images)).argmax(1).numpy()
    return asr(predictions, supplies.held.labels.numpy(), trigger)


def test_it_takes_a_backdoor_out_without_labels_and_keeps_what_the_network_knew() -> None:
    model, supplies = backdoored()
    assert rate_of_success(model, supplies) > 0.9
    before = accuracy(model, supplies.held)
    unlabelled = Labelled(supplies.train.images, torch.zeros_like(supplies.train.labels))
    blind = dataclasses.replace(supplies, train=unlabelled, labelled=False, triggers=(), poisoned=None)
    repair = GuidedUnlearning(
        rounds=2, epochs=15, search_steps=15, patch=0.375, cutout=0, precision="float32"
    )
    done = repair.repair(model, blind, generator=seeded(), sitting=Sitting())
    assert done.facts["suspect_label_1"] == 1
    assert rate_of_success(done.model, supplies) < 0.2
    assert accuracy(done.model, supplies.held) > before - 0.05


class Brightest(nn.Module):
    """Says which of twelve pixels is brightest; it takes little to say the last."""

    most = 0

    def forward(self, images: Tensor) -> Tensor:
        self.most = max(self.most, len(images))
        scores = images[:, 0].flatten(1)[:, ::5][:, :12]
        return 20 * scores * torch.tensor([1.0] * 11 + [1.6])


def test_many_labels_are_sought_lot_by_lot_and_the_best_reached_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, options = 0.5 * torch.rand((40, 1, 8, 8), generator=seeded(1)), Suspicion(steps=3, judged=32)
    ends, whole = Range(torch.zeros(1), torch.ones(1)), Brightest()
    at_once = suspect(whole, images, ends, 12, options, generator=seeded())
    assert whole.most == 12 * 6 * 16
    monkeypatch.setattr(seeking, "LARGEST_BATCH", 200)
    parted = Brightest()
    found = suspect(parted, images, ends, 12, options, generator=seeded())
    assert parted.most <= 200
    assert found.images == at_once.images
    assert found.label == at_once.label == 11
    search = Search(
        Brightest(), images, ends, options, seeded(), "float32", Progress(0, "suspect", quiet=True)
    )
    patches = search.all_families(torch.arange(12), reflected=4, waves=False)[2]
    assert len(patches.labels.unique()) == seeking.KEPT
    assert 11 in patches.labels


def test_what_was_found_is_not_sought_again(tmp_path: Path) -> None:
    """Where arithmetic does not repeat, another search would find something else to unlearn."""
    path, told, sought = tmp_path / "suspect.safetensors", {"patch": 1.0}, []

    def found(seed: int, identity: str = "search") -> tuple[Suspects, Tensor]:
        generator = seeded(seed)

        def seek() -> Suspects:
            sought.append(torch.rand(1, generator=generator))
            return Suspects(1, told, perturbations([1, 1], [0.5, 0.25]), torch.tensor([0.75, 0.25]), 7)

        suspects, _ = found_once(path, seek, generator=generator, identity=identity)
        return suspects, generator.get_state()

    (first, after), (again, state) = found(0), found(0)
    assert len(sought) == 1
    assert torch.equal(state, after)
    assert (again.label, again.shares, again.images) == (1, told, 7)
    assert torch.equal(again.weights, first.weights)
    assert torch.equal(again.perturbations.rates, first.perturbations.rates)
    for seed, identity in ((1, "search"), (0, "another")):
        with pytest.raises(OptionError, match="delete it"):
            found(seed, identity)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"suspect\.safetensors"):
        found(0)


def test_images_too_small_for_waves_are_refused() -> None:
    supplies = dataclasses.replace(supplies_of(Shape(train=40, held=10)), shape=(1, 3, 28))
    with pytest.raises(ModelError, match=r"guided_unlearning needs images of at least 4 .* 3 x 28"):
        GuidedUnlearning().repair(network_of(Shape()), supplies, generator=seeded(), sitting=Sitting())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("noise", 0.0), ("shade", -1.0), ("wave", 0.0), ("patch", 1.5), ("weight", 0.0), ("perturbed", 0.0),
        ("perturbed", 1.1), ("given", 1.1), ("floor", -0.1), ("floor", 1.5), ("search_steps", 0),
        ("clip", 0.0),
        ("rounds", 0),
        ("epochs", 0),
    ],
)  # fmt: skip
def test_an_option_out_of_its_range_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        GuidedUnlearning(**{option: value})


def test_a_trigger_that_was_given_is_unlearned_though_the_search_is_blind_to_it() -> None:
    model, supplies = backdoored()
    blind = {"noise": 0.001, "shade": 0.001, "wave": 0.001, "patch": 0.05, "search_steps": 1}
    rates = {}
    for given in (0.0, 0.5):
        repair = GuidedUnlearning(given=given, epochs=10, cutout=0, precision="float32", **blind)  # type: ignore[arg-type]
        done = repair.repair(model, supplies, generator=seeded(), sitting=Sitting())
        assert done.facts["triggers"] == (1.0 if given else 0.0)
        rates[given] = rate_of_success(done.model, supplies)
    assert rates[0.0] > 0.5
    assert rates[0.5] < 0.1
