"""Data-free backdoor erasing: its nets, its losses by hand, its steps' directions, and a network repaired."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from calibration.checkpoint import fingerprint  # noqa: E402
from calibration.errors import ModelError  # noqa: E402
from calibration.repair.base import Labelled, Sitting, Supplies  # noqa: E402
from calibration.repair.contest import Contest  # noqa: E402
from calibration.repair.dhbe import DataFreeErasing  # noqa: E402
from calibration.repair.dhbe_losses import apart, logits_and_gap, total_variation  # noqa: E402
from calibration.repair.image_generator import ImageGenerator, doublings, in_values  # noqa: E402
from calibration.repair.trigger_generator import TriggerGenerator, draw_corners, paste  # noqa: E402

PAPERS = {
    "places": "batch", "prior": 0.0, "prime_steps": 0, "pool": 0, "clip": 0.0, "schedule": "steps",
    "trigger_steps": 1, "precision": "float32", "width": 4, "latent": 8, "patch": 2, "batch": 16,
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def no_supplies(channels: int = 1, side: int = 6, low: float = -1.0, high: float = 3.0) -> Supplies:
    none = Labelled(torch.zeros(0, channels, side, side), torch.zeros(0, dtype=torch.int64))
    return Supplies(
        train=none, held=none, classes=3, shape=(channels, side, side),
        low=torch.full((channels,), low), high=torch.full((channels,), high),
    )  # fmt: skip


def line(seed: int, side: int = 6) -> fx.GraphModule:
    """A linear network of three classes, its weights known."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn((3, side * side), generator=seeded(seed)))
        net[1].bias.zero_()
    return fx.symbolic_trace(net)


def contest_of(student: fx.GraphModule, teacher: fx.GraphModule, **options: object) -> Contest:
    made = DataFreeErasing(**{**PAPERS, **options})
    contest = made.contest(student, no_supplies(), seeded())
    contest.teacher = teacher.requires_grad_(False)
    return contest


def test_the_distance_of_logits_is_the_mean_over_all_of_them() -> None:
    assert apart(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 1.0]])) == 1.0


def test_total_variation_is_that_of_four_directions_over_the_whole_batch() -> None:
    images = torch.rand((3, 2, 5, 7), generator=seeded())
    plain = images.double().numpy()  # sum of the Frobenius norms, as in the authors' regulariser
    wanted = sum(
        np.sqrt((difference**2).sum())
        for difference in (
            np.diff(plain, axis=3),
            np.diff(plain, axis=2),
            plain[:, :, 1:, 1:] - plain[:, :, :-1, :-1],
            plain[:, :, 1:, :-1] - plain[:, :, :-1, 1:],
        )
    )
    assert total_variation(images).item() == pytest.approx(wanted, rel=1e-6)


def test_the_gap_to_the_remembered_data_is_that_of_means_and_deviations() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean = torch.tensor([0.5, -1.0])
    norm.running_var = torch.tensor([4.0, 0.25])
    net = fx.symbolic_trace(nn.Sequential(norm, nn.Flatten())).eval()
    images = torch.rand((6, 2, 3, 3), generator=seeded()).requires_grad_()
    logits, gap = logits_and_gap(net, images)
    plain = images.detach().double().numpy().transpose(1, 0, 2, 3).reshape(2, -1)
    means, deviations = plain.mean(1) - [0.5, -1.0], plain.std(1) - [2.0, 0.5]
    assert gap.item() == pytest.approx(((means**2).sum() + (deviations**2).sum()) / 4.25, rel=1e-5)
    assert torch.equal(logits, net(images))
    gap.backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_network_without_batch_norm_remembers_nothing() -> None:
    assert logits_and_gap(line(0), torch.zeros(2, 1, 6, 6))[1] == 0


@pytest.mark.parametrize(
    ("side", "start"), [(28, 7), (32, 8), (56, 7), (64, 8), (112, 7), (224, 7), (8, 8), (5, 5), (3, 3)]
)
def test_images_start_from_as_coarse_a_map_as_the_authors_do(side: int, start: int) -> None:
    assert -(-side // 2 ** doublings(side)) == start


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 8, 8), (3, 21, 34), (1, 5, 5)])
def test_invented_images_have_the_shape_asked_for_and_unit_variance(shape: tuple[int, int, int]) -> None:
    net = ImageGenerator(shape, latent=8, width=4)
    images = net(torch.randn((12, 8), generator=seeded()), torch.zeros(12, dtype=torch.int64))
    assert images.shape == (12, *shape)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.var((0, 2, 3)) - 1).abs().max() < 2e-2


def test_a_code_of_its_class_moves_an_image() -> None:
    net = ImageGenerator((1, 8, 8), latent=8, width=4, classes=3).eval()
    noise = torch.zeros(2, 8)
    assert torch.equal(*net(noise, torch.tensor([1, 1])))
    assert not torch.allclose(*net(noise, torch.tensor([1, 2])))


def test_images_lie_about_the_middle_of_the_range_a_quarter_of_it_wide() -> None:
    low, high = torch.tensor([0.0, -2.0]), torch.tensor([1.0, 2.0])
    drawn = torch.tensor([[[[1.0]], [[-1.0]]]])
    assert in_values(drawn, low, high).flatten().tolist() == [0.75, -1.0]


def test_patches_are_of_the_size_asked_for_and_of_both_signs() -> None:
    patches = TriggerGenerator(3, size=4, latent=8)(torch.randn((16, 8), generator=seeded()))
    assert patches.shape == (16, 3, 4, 4)
    assert -1 < patches.min() < -0.5
    assert 0.5 < patches.max() < 1


def test_patches_are_added_where_they_are_meant_to_be_and_nothing_is_clipped() -> None:
    images = torch.full((2, 1, 3, 4), 0.75)
    patches = torch.tensor([[[[1.0]]], [[[-0.5]]]]).requires_grad_()
    pasted = paste(images, patches, torch.tensor([[0, 0], [2, 3]]), torch.tensor([4.0]))
    expected = images.clone()
    expected[0, 0, 0, 0], expected[1, 0, 2, 3] = 4.75, -1.25
    assert torch.equal(pasted, expected)
    pasted.sum().backward()
    assert patches.grad.flatten().tolist() == [4.0, 4.0]
    assert torch.equal(images, torch.full((2, 1, 3, 4), 0.75))


def test_one_corner_serves_a_whole_batch() -> None:
    pasted = paste(
        torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 2, 2), torch.tensor([[1, 2]]), torch.tensor([1.0, 2.0])
    )
    assert pasted[:, 0].nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert pasted.sum((2, 3)).tolist() == [[4.0, 8.0]] * 3


def test_every_corner_is_drawn_at_which_a_patch_fits() -> None:
    drawn = draw_corners(400, (4, 5), 3, seeded())
    assert {tuple(corner) for corner in drawn.tolist()} == {(row, col) for row in (0, 1) for col in (0, 1, 2)}


def test_the_student_learns_by_the_papers_loss() -> None:
    student, teacher = line(1), line(2)
    contest = contest_of(student, teacher, trigger_weight=0.25)
    net = contest.student
    contest.begin({"student": torch.optim.SGD(net.parameters(), 1.0)}, 1)
    images = torch.rand((16, 1, 6, 6), generator=seeded(5))
    state = contest.generator.get_state()
    stamped = contest.stamped(images).detach().double().flatten(1).numpy()
    contest.generator.set_state(state)
    old = net.get_submodule("1").weight.detach().double().numpy()
    loss = contest.step_student(images, teacher(images))
    plain = images.double().flatten(1).numpy()
    apart_from_teacher = plain @ old.T - plain @ teacher.get_submodule("1").weight.double().numpy().T
    moved = (stamped - plain) @ old.T
    assert loss.item() == pytest.approx(np.abs(apart_from_teacher).mean() + 0.25 * np.abs(moved).mean(), 1e-5)
    # s(x) under the second bar is a constant, so that its gradient is that of s(x') alone
    gradient = (np.sign(apart_from_teacher).T @ plain + 0.25 * np.sign(moved).T @ stamped) / moved.size
    np.testing.assert_allclose(net.get_submodule("1").weight.detach().numpy(), old - gradient, atol=1e-5)


def test_a_step_of_the_triggers_moves_the_students_answers_further() -> None:
    contest = contest_of(line(1), line(1))
    contest.begin({"triggers": torch.optim.SGD(contest.triggers.parameters(), 1e-3)}, 1)
    images = torch.rand((16, 1, 6, 6), generator=seeded(5))

    def moved() -> float:
        state = contest.generator.get_state()
        with torch.no_grad():
            found = apart(contest.student(contest.stamped(images)), contest.student(images)).item()
        contest.generator.set_state(state)
        return found

    before = moved()
    state = contest.generator.get_state()
    contest.step_triggers(images)
    contest.generator.set_state(state)
    assert moved() > before


@pytest.mark.parametrize("smoothness", [0.0, 1.0])
def test_a_step_of_the_images_sets_student_and_teacher_apart_and_smooths(smoothness: float) -> None:
    contest = contest_of(line(1), line(2), smoothness=smoothness)
    contest.begin({"images": torch.optim.SGD(contest.images.parameters(), 1e-3)}, 1)
    state = contest.generator.get_state()

    def loss() -> float:
        contest.generator.set_state(state)
        return contest.step_images(against=True).item()

    drawn = contest.images(torch.randn((16, 8), generator=seeded(9)), torch.zeros(16, dtype=torch.int64))
    assert total_variation(drawn) > 0
    first = loss()
    assert loss() < first
    assert (first < 0) == (smoothness == 0.0)


def test_no_generator_moves_the_student_and_no_student_the_generators() -> None:
    contest = contest_of(line(1), line(2))
    contest.begin(
        {
            "student": torch.optim.SGD(contest.student.parameters(), 0.1),
            "images": torch.optim.Adam(contest.images.parameters(), 0.1),
            "triggers": torch.optim.Adam(contest.triggers.parameters(), 0.1),
        },
        1,
    )
    parts = (contest.student, contest.images, contest.triggers, contest.teacher)

    def changed(act: object) -> list[bool]:
        before = [fingerprint(part.parameters()) for part in parts]
        act()  # type: ignore[operator]
        return [fingerprint(part.parameters()) != was for part, was in zip(parts, before, strict=True)]

    images = torch.rand((16, 1, 6, 6), generator=seeded(5))
    answers = contest.teacher(images)
    assert changed(lambda: contest.step_student(images, answers)) == [True, False, False, False]
    assert changed(lambda: contest.step_images(against=True)) == [False, True, False, False]
    assert changed(lambda: contest.step_triggers(images)) == [False, False, True, False]
    assert all(weight.grad is None for part in parts for weight in part.parameters())


def test_a_copy_overlooks_patches_that_move_the_networks_answers() -> None:
    model = line(1)
    made = DataFreeErasing(**{**PAPERS, "epochs": 4, "iterations": 10, "trigger_weight": 3.0, "rate": 0.02})
    done = made.repair(model, no_supplies(), generator=seeded(), sitting=Sitting())
    images = torch.rand((64, 1, 6, 6), generator=seeded(5))
    patches = torch.randint(2, (64, 1, 2, 2), generator=seeded(6)) * 2.0 - 1.0
    stamped = paste(images, patches, draw_corners(64, (6, 6), 2, seeded(7)), torch.tensor([4.0]))
    before, after = (apart(net(stamped), net(images)).item() for net in (model, done.model))
    assert after < 0.8 * before
    assert [stage.name for stage in done.stages] == ["erase"]


def test_a_patch_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ModelError, match=r"dhbe needs images of at least 7 pixels a side, got 6 x 6"):
        DataFreeErasing(patch=7).repair(line(1), no_supplies(), generator=seeded(), sitting=Sitting())


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("batch", 1), ("pool", -1), ("rate", -0.1)],
)
def test_an_option_out_of_its_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: expected"):
        DataFreeErasing(**{option: value})


def test_images_can_only_be_primed_by_what_the_network_tells() -> None:
    with pytest.raises(ValueError, match=r"^prime_steps: expected 0 where prior is 0"):
        DataFreeErasing(prior=0.0)
