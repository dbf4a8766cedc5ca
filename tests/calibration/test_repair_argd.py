from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from calibration.augmentation import Augmentation  # noqa: E402
from calibration.errors import OptionError  # noqa: E402
from calibration.repair.argd import AttentionRelationGraphDistillation  # noqa: E402
from calibration.repair.attention import attention_map  # noqa: E402
from calibration.repair.base import Sitting  # noqa: E402
from calibration.repair.relations import Relations, edge_loss, edges  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402

STEPS = 39
"""Of an epoch: 2,500 images, 64 a step."""
SIDES = (8, 4, 2)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(seed: int, n: int = 6) -> list[torch.Tensor]:
    return [attention_map(torch.randn((n, 3, side, side), generator=seeded(seed))) for side in SIDES]


def doubled(found: torch.Tensor) -> torch.Tensor:
    """The same picture with four pixels for each, again of norm 1."""
    return found.repeat_interleave(2, 1).repeat_interleave(2, 2) / 2


def resized(found: np.ndarray, side: int) -> np.ndarray:
    """Means over squares, or each pixel repeated."""
    n, own = len(found), found.shape[1]
    if side >= own:
        return found.repeat(side // own, 1).repeat(side // own, 2)
    return found.reshape(n, side, own // side, side, own // side).mean((2, 4))


def normed(values: np.ndarray) -> np.ndarray:
    """Batch norm over the first axis, with gain 1 and shift 0."""
    return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)


def quick(**options: Any) -> AttentionRelationGraphDistillation:
    usual = {"epochs": 1, "teacher_epochs": 1, "batch": 16, "precision": "float32", "rate": 0.02, "width": 8}
    return AttentionRelationGraphDistillation(**(usual | options))


def kept(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """What the checkpoint of the student's stage holds in the end."""
    subject = SHAPES["residual"]
    quick(**options).repair(
        network_of(subject), supplies_of(subject), generator=seeded(), sitting=Sitting(folder)
    )
    return load_file(folder / "distil.safetensors")


def test_the_student_and_the_teacher_train_at_the_published_rates() -> None:
    argd = AttentionRelationGraphDistillation()
    for recipe in (argd.recipe(Augmentation()), argd.teacher_recipe(Augmentation())):
        ends = [step for epoch in range(10) for step in (epoch * STEPS, epoch * STEPS + STEPS - 1)]
        rates = [recipe.rate * recipe.schedule.factor(step, 10 * STEPS) for step in ends]
        assert recipe.epochs == 10
        assert rates == pytest.approx([0.1] * 6 + [0.01] * 6 + [0.001] * 8)
        assert (recipe.batch, recipe.optimiser, recipe.weight_decay) == (64, "nesterov", 1e-4)
    assert argd.nodes == (2000.0, 5000.0, 2000.0)
    assert (argd.edge, argd.embedding, argd.width) == (1.0, 1.0, 128)


def test_an_edge_is_the_squared_distance_at_the_coarser_size_over_the_largest_of_the_batch() -> None:
    fine = torch.tensor([[[0.8, 0.2], [0.4, 0.6]], [[0.1, 0.1], [0.1, 0.1]]])
    coarse = torch.tensor([[[1.0]], [[0.6]]])
    # The fine maps' means are 0.5 and 0.1; 0.5 from the coarse ones, both.
    assert edges([fine, coarse]).tolist() == [pytest.approx([1.0, 1.0])]
    # Against 1.0 and 0.2 the second is 0.1 away, whose square is a 25th of the first's.
    assert edges([fine, torch.tensor([[[1.0]], [[0.2]]])]).tolist() == [pytest.approx([1.0, 0.04])]


def test_edges_of_three_maps_are_those_of_the_formula() -> None:
    found = [one.double().numpy() for one in maps(1)]
    wanted = []
    for fine, coarse in ((0, 1), (0, 2), (1, 2)):
        apart = ((resized(found[fine], SIDES[coarse]) - found[coarse]) ** 2).sum((1, 2))
        wanted.append(apart / apart.max())
    assert np.allclose(edges(maps(1)).numpy(), wanted, atol=1e-5)


def test_the_edge_loss_is_the_mean_squared_difference_over_pairs_and_images() -> None:
    wanted = np.mean((edges(maps(1)).double().numpy() - edges(maps(2)).double().numpy()) ** 2)
    assert float(edge_loss(maps(1), maps(2))) == pytest.approx(wanted, rel=1e-5)
    assert float(edge_loss(maps(1), maps(1))) == 0.0


def test_one_map_has_no_edges() -> None:
    assert float(edge_loss(maps(1)[:1], maps(2)[:1])) == 0.0


def test_the_embedding_loss_is_that_of_the_formula() -> None:
    relations = Relations(3, 16, seeded())
    student, teacher = ([one.double().numpy() for one in maps(seed)] for seed in (1, 2))
    weights = {name: part.detach().double().numpy() for name, part in relations.named_parameters()}
    # Norm-1 maps of 8, 4 and 2 pixels a side count as ones of 32, 16 and 8: their means are a quarter.
    query, key = (
        np.stack([one.mean((1, 2)) / 4 for one in found], 1)[:, :, None] * weights[name]
        for found, name in ((teacher, "query"), (student, "key"))
    )
    key = np.maximum(normed(key), 0)
    turned = normed((key @ weights["bilinear"]).reshape(-1, 48)).reshape(6, 3, 3, 16)
    logits = np.einsum("nstd,ntd->nts", turned, normed(query))
    logits = (logits + weights["teacher_places"] @ weights["student_places"].T) / 4
    shares = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    loss = 0.0
    for place, (target, side, pixels) in enumerate(zip(teacher, SIDES, (1024, 256, 64), strict=True)):
        value = (target**2).reshape(6, -1)
        value /= np.linalg.norm(value, axis=1, keepdims=True)
        for other, own in enumerate(student):
            seen = resized(own**2, side).reshape(6, -1)
            seen /= np.linalg.norm(seen, axis=1, keepdims=True)
            loss += (shares[:, place, other] * ((seen - value) ** 2).sum(1)).mean() / pixels
    found = relations(maps(1), maps(2))
    assert np.allclose(relations.shares(maps(1), maps(2)).detach().numpy(), shares, atol=1e-4)
    assert found.item() == pytest.approx(loss, rel=1e-4)


def test_no_loss_depends_on_the_size_of_the_images() -> None:
    relations = Relations(3, 16, seeded())
    features = torch.randn((2, 3, 6, 3, 2, 2), generator=seeded())
    coarse = ([attention_map(stage) for stage in network] for network in features)
    own, other = ([doubled(doubled(one)), doubled(two), three] for one, two, three in coarse)
    larger, larger_other = ([doubled(one) for one in found] for found in (own, other))
    assert float(edge_loss(larger, larger_other)) == pytest.approx(float(edge_loss(own, other)), rel=1e-4)
    assert relations(larger, larger_other).item() == pytest.approx(relations(own, other).item(), rel=1e-4)


def test_the_losses_are_float32_under_autocast() -> None:
    relations = Relations(3, 16, seeded())
    plain = relations(maps(1), maps(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relations(maps(1), maps(2)), plain)


def test_relations_are_learned_only_if_they_are_to_be(tmp_path: Path) -> None:
    drawn = Relations(2, 8, seeded()).query.shape
    frozen = kept(tmp_path / "frozen", learn_relations=False)["model.1.query"]
    longer = kept(tmp_path / "longer", learn_relations=False, epochs=2)["model.1.query"]
    learned = kept(tmp_path / "learned", learn_relations=True)["model.1.query"]
    assert frozen.shape == drawn
    assert torch.equal(frozen, longer)
    assert not torch.equal(frozen, learned)


def test_each_loss_has_its_part_in_the_student(tmp_path: Path) -> None:
    whole, *without = (
        kept(tmp_path / str(place), **options)["model.0.stem.weight"]
        for place, options in enumerate(({}, {"nodes": (0.0, 0.0)}, {"edge": 0.0}, {"embedding": 0.0}))
    )
    assert [torch.equal(whole, other) for other in without] == [False, False, False]


def test_a_distillation_begun_with_other_weights_is_not_gone_on_with(tmp_path: Path) -> None:
    kept(tmp_path)
    with pytest.raises(OptionError, match=r"checkpoint distil.safetensors: expected hooks argd"):
        kept(tmp_path, edge=2.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nodes", ()),
        ("nodes", (-1.0,)),
        ("edge", -1.0),
        ("embedding", -1.0),
        ("width", 0),
        ("teacher_epochs", 0),
        ("drops", (0.5, 0.5)),
        ("teacher_drops", (1.0,)),
        ("batch", 0),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: expected"):
        AttentionRelationGraphDistillation(**{option: value})  # type: ignore[arg-type]
