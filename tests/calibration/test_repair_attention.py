"""What NAD and ARGD share: attention maps, how far they are apart, and where they are taken."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from calibration.errors import ModelError  # noqa: E402
from calibration.repair.attention import (  # noqa: E402
    Attending,
    attention_map,
    last_stages,
    map_loss,
    papers_pixels,
)
from calibration.repair.base import copy_of  # noqa: E402
from calibration.repair.teacher import steps_at  # noqa: E402
from calibration.stages import find_stages, tapped  # noqa: E402
from tests.contract.repair_subjects import SHAPES, SIDE, network_of, supplies_of  # noqa: E402

ROW = (3, SIDE, SIDE)


def maps(sides: tuple[int, ...], seed: int, n: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [attention_map(torch.randn((n, 4, side, side), generator=generator)) for side in sides]


def doubled(found: torch.Tensor) -> torch.Tensor:
    """The same picture with four pixels for each, again of norm 1."""
    return found.repeat_interleave(2, 1).repeat_interleave(2, 2) / 2


def test_a_map_is_the_sum_of_squares_over_channels_at_length_1() -> None:
    features = torch.tensor([[[[1.0, -2.0]], [[1.0, 0.0]]]])
    # Squares summed over the two channels: 2 and 4; their length: sqrt(20).
    assert attention_map(features).tolist() == [[pytest.approx([2 / 20**0.5, 4 / 20**0.5], rel=1e-5)]]


def test_a_map_of_nothing_is_nothing() -> None:
    assert attention_map(torch.zeros(2, 3, 4, 4)).eq(0).all()


def test_a_map_of_bfloat16_features_is_computed_in_float32() -> None:
    features = torch.randn((2, 64, 8, 8), generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = (features.double() ** 2).sum(1)
    wanted /= wanted.flatten(1).norm(dim=1)[:, None, None] + 1e-6
    assert attention_map(features).dtype == torch.float32
    assert torch.allclose(attention_map(features).double(), wanted, atol=1e-6)


def test_on_the_papers_sizes_the_loss_is_the_authors_mean_over_images_and_pixels() -> None:
    student, teacher = maps((32, 16, 8), 1), maps((32, 16, 8), 2)
    pairs = zip(student, teacher, strict=True)
    means = [np.mean((own.double().numpy() - other.double().numpy()) ** 2) for own, other in pairs]
    wanted = 500 * means[0] + 1000 * means[1] + 1000 * means[2]
    assert papers_pixels(3) == (1024, 256, 64)
    assert float(map_loss(student, teacher, (500.0, 1000.0, 1000.0))) == pytest.approx(wanted, rel=1e-5)


def test_the_loss_does_not_depend_on_the_size_of_the_images() -> None:
    student, teacher, weights = maps((8, 4), 1), maps((8, 4), 2), (3.0, 5.0)
    larger = map_loss([doubled(one) for one in student], [doubled(one) for one in teacher], weights)
    assert float(larger) == pytest.approx(float(map_loss(student, teacher, weights)), rel=1e-5)


def test_of_more_weights_than_stages_the_last_count() -> None:
    student, teacher = maps((4,), 1), maps((4,), 2)
    assert float(map_loss(student, teacher, (7.0, 2.0))) == float(map_loss(student, teacher, (2.0,)))


def test_a_network_without_feature_maps_is_refused() -> None:
    flat = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)))
    with pytest.raises(ModelError, match=r"nad needs a network with feature maps.*fine_tuning"):
        last_stages(flat, ROW, 3, "nad")


def test_as_many_stages_as_there_are_but_no_more_than_asked_for_are_taken() -> None:
    model = network_of(SHAPES["residual"])
    assert [stage.height for stage in last_stages(model, ROW, 3, "nad")] == [8, 4]
    assert [stage.height for stage in last_stages(model, ROW, 1, "nad")] == [4]


def test_a_tapped_network_has_the_weights_of_its_own_and_trains_with_it() -> None:
    model = copy_of(network_of(SHAPES["residual"]))
    both = tapped(model, find_stages(model, ROW))
    assert {id(weight) for weight in both.parameters()} == {id(weight) for weight in model.parameters()}
    model.train()
    before = model.norm.running_mean.clone()
    images = supplies_of(SHAPES["residual"]).train.images
    both(images)[0].sum().backward()
    assert not torch.equal(model.norm.running_mean, before)
    assert all(weight.grad is not None for weight in model.parameters())


def test_without_logits_nothing_after_the_last_map_is_computed() -> None:
    model = network_of(SHAPES["residual"])
    short = tapped(model, find_stages(model, ROW)[:1], logits=False)
    assert not {"down", "last", "head"} & {str(node.target) for node in short.graph.nodes}
    assert [tuple(found.shape) for found in short(torch.rand(2, *ROW))[1]] == [(2, 8, SIDE, SIDE)]
    assert short(torch.rand(2, *ROW))[0] is None


def test_no_gradient_goes_to_the_teacher_and_one_goes_through_each_map_of_the_student() -> None:
    student, teacher = (copy_of(network_of(SHAPES["residual"], seed)) for seed in (1, 2))
    attending = Attending.of(student, teacher, find_stages(student, ROW))
    logits, seen, wanted = attending(supplies_of(SHAPES["residual"]).train.images)
    assert torch.equal(logits, student(supplies_of(SHAPES["residual"]).train.images))
    assert not any(one.requires_grad for one in wanted)
    map_loss(seen, wanted, (1.0, 1.0)).backward()
    assert float(student.stem.weight.grad.abs().sum()) > 0
    assert float(student.last.weight.grad.abs().sum()) > 0
    assert student.head.weight.grad is None
    assert all(weight.grad is None for weight in teacher.parameters())


def test_shares_that_do_not_rise_are_refused_by_the_options_name() -> None:
    with pytest.raises(ValueError, match=r"teacher_drops: expected rising shares.*\(0.5, 0.2\)"):
        steps_at("teacher_drops", (0.5, 0.2))
