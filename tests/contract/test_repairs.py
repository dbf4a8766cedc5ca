"""What every repair promises, tried on every repair in the table."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration import training  # noqa: E402
from calibration.checkpoint import fingerprint  # noqa: E402
from calibration.errors import CalibrationError, DataError, TooFewImagesError  # noqa: E402
from calibration.export import ExportRecord, export_onnx, parity  # noqa: E402
from calibration.repair.base import Labelled, Repair, Sitting, options_of  # noqa: E402
from calibration.repair.table import REPAIRS  # noqa: E402
from guard.artifact.signature import Signature  # noqa: E402
from tests.contract.repair_runs import (  # noqa: E402
    by_name,
    on_every_shape,
    on_shapes,
    result,
    run,
    seeded,
    tensors,
    weights,
)
from tests.contract.repair_subjects import ROWS, SHAPES, SIDE, Shape, network_of, quick, supplies_of  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_every_repair_in_the_table_is_tried_here() -> None:
    assert set(ROWS) == set(REPAIRS)


@by_name
def test_a_repair_has_a_file_and_is_called_what_the_table_calls_it(name: str) -> None:
    entry = REPAIRS[name]
    assert entry.module == name == entry.load().name
    assert (ROOT / "calibration" / "repair" / f"{name}.py").is_file()
    assert entry.load().__module__ == f"calibration.repair.{name}"


def test_the_import_contract_names_every_repair() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert [name for name in REPAIRS if f'"calibration.repair.{name}"' not in text] == []


@by_name
def test_its_docstring_says_where_it_is_from_and_describes_every_option(name: str) -> None:
    text, kind = inspect.getdoc(REPAIRS[name].load()) or "", REPAIRS[name].load()
    assert "References:" in text
    assert [one.name for one in dataclasses.fields(kind) if f"\n    {one.name}: " not in text] == []


@by_name
def test_it_is_a_frozen_dataclass_of_options_with_the_verb_repair(name: str) -> None:
    made = quick(name)
    assert isinstance(made, Repair)
    assert dataclasses.is_dataclass(made)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]
    assert json.loads(json.dumps(options_of(made))) == options_of(made)


@by_name
def test_an_option_of_another_type_is_refused_by_name(name: str) -> None:
    kind = REPAIRS[name].load()
    for one in dataclasses.fields(kind):
        with pytest.raises(ValueError, match=one.name):
            REPAIRS[name].make(**{one.name: {"not": "that"}})


@on_every_shape
def test_it_gives_a_finite_network_of_the_same_face(name: str, shape: str) -> None:
    chosen, repaired = SHAPES[shape], result(name, shape).model
    held = supplies_of(chosen).held
    logits = training.predict(repaired, held.images)
    assert logits.shape == (len(held), chosen.classes)
    assert logits.isfinite().all()
    assert not repaired.training
    assert {weight.device for weight in repaired.parameters()} == {torch.device("cpu")}
    assert all(weight.grad is None or weight.requires_grad for weight in repaired.parameters())


@on_every_shape
def test_it_changes_the_weights_and_says_what_it_did(name: str, shape: str) -> None:
    done = result(name, shape)
    assert weights(done.model) != weights(network_of(SHAPES[shape]))
    assert done.stages
    assert len({stage.name for stage in done.stages}) == len(done.stages)
    assert done.images >= 1
    assert done.seconds > 0
    assert all(np.isfinite(stage.losses).all() for stage in done.stages)
    json.dumps([dict(done.facts), done.notes])


@by_name
def test_the_network_that_is_given_is_left_as_it_was(name: str) -> None:
    chosen = SHAPES["residual"]
    model, supplies = network_of(chosen), supplies_of(chosen)
    model.head.requires_grad_(False)
    before, code = weights(model), model.code
    images = fingerprint([supplies.train.images, supplies.held.images])
    quick(name).repair(model, supplies, generator=seeded(), sitting=Sitting())
    assert weights(model) == before
    assert model.code == code
    assert not any(part.training for part in model.modules())
    assert [weight.requires_grad for weight in model.head.parameters()] == [False, False]
    assert all(weight.grad is None for weight in model.parameters())
    assert fingerprint([supplies.train.images, supplies.held.images]) == images


@by_name
def test_no_hooks_are_left(name: str) -> None:
    for part in result(name, "residual").model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(part, kind), (part, kind)


@by_name
def test_one_seed_is_one_repair_and_another_is_another(name: str) -> None:
    first = result(name, "residual")
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = run(name)
    assert weights(again.model) == weights(first.model)
    assert dict(again.facts) == dict(first.facts)
    assert weights(run(name, seed=6).model) != weights(first.model)


@by_name
def test_the_global_generator_is_not_drawn_from(name: str) -> None:
    before = torch.random.get_rng_state()
    run(name)
    assert torch.equal(torch.random.get_rng_state(), before)


@on_every_shape
def test_it_gives_the_graph_that_it_was_given_with_other_numbers(name: str, shape: str) -> None:
    """So that what is exported of one shape speaks for the others, which are tried among the slow."""
    given, repaired = network_of(SHAPES[shape]), result(name, shape).model
    assert repaired.code == given.code
    assert tensors(repaired) == tensors(given)
    assert not any(part.training for part in repaired.modules())


@on_shapes(slow=SHAPES.keys() - {"residual"})
def test_what_it_gives_is_exported_with_parity(name: str, shape: str) -> None:
    chosen, repaired = SHAPES[shape], result(name, shape).model
    signature = Signature(
        input_name="images", datatype="FP32", shape=(chosen.channels, SIDE, SIDE), layout="NCHW",
        fixed_batch=None, output_name="logits", output_datatype="FP32", classes=chosen.classes,
    )  # fmt: skip
    proto = export_onnx(repaired, signature, ExportRecord("guard", name, "0" * 64))
    images = supplies_of(chosen).held.images.numpy()
    assert parity(repaired, proto, [images]) <= 1e-4


class Interrupt:
    """Breaks a repair off in the middle of its nth step of an optimiser."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        for kind in (torch.optim.SGD, torch.optim.Adam):
            monkeypatch.setattr(kind, "step", self.counted(kind.step))

    def counted(self, step: object) -> object:
        def counting(optimiser: object, *given: object, **named: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return step(optimiser, *given, **named)  # type: ignore[operator]

        return counting


@by_name
@pytest.mark.parametrize("at", [0, 9])
def test_a_repair_that_was_broken_off_goes_on_and_ends_as_an_unbroken_one(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network_of(SHAPES["residual"])
    before = weights(model)
    with monkeypatch.context() as patch:
        Interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            quick(name).repair(
                model, supplies_of(SHAPES["residual"]), generator=seeded(), sitting=Sitting(tmp_path)
            )
    assert weights(model) == before
    assert not list(tmp_path.glob("*.partial"))
    resumed = run(name, sitting=Sitting(tmp_path))
    assert weights(resumed.model) == weights(result(name, "residual").model)


@by_name
def test_a_repair_that_was_finished_is_not_done_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = run(name, sitting=Sitting(tmp_path))
    with monkeypatch.context() as patch:
        Interrupt(patch, 0)
        again = run(name, sitting=Sitting(tmp_path))
    assert weights(again.model) == weights(finished.model)


@by_name
def test_without_labels_it_works_or_asks_for_them(name: str) -> None:
    unlabelled = dataclasses.replace(supplies_of(SHAPES["residual"]), labelled=False)
    made, model = quick(name), network_of(SHAPES["residual"])
    if "labels" in REPAIRS[name].needs:
        with pytest.raises(DataError, match=f"{name} needs the true labels"):
            made.repair(model, unlabelled, generator=seeded(), sitting=Sitting())
    else:
        assert made.repair(model, unlabelled, generator=seeded(), sitting=Sitting()).stages


@by_name
def test_without_images_it_works_or_asks_for_them(name: str) -> None:
    full = supplies_of(SHAPES["residual"])
    none = full.train.take(torch.zeros(len(full.train), dtype=torch.bool))
    bare = dataclasses.replace(full, train=none, held=none)
    made, model = quick(name), network_of(SHAPES["residual"])
    if "images" in REPAIRS[name].needs:
        with pytest.raises(TooFewImagesError, match=f"{name} needs"):
            made.repair(model, bare, generator=seeded(), sitting=Sitting())
    else:
        assert made.repair(model, bare, generator=seeded(), sitting=Sitting()).stages


@by_name
@pytest.mark.parametrize(
    ("need", "lack", "words"),
    [
        ("trigger", {"triggers": ()}, "trigger"),
        ("distribution", {"distributions": {}}, "distribution"),
        ("poisoned set", {"poisoned": None}, "training set"),
    ],
)
def test_it_asks_for_what_it_cannot_do_without_and_for_nothing_else(
    name: str, need: str, lack: dict[str, object], words: str
) -> None:
    lacking = dataclasses.replace(supplies_of(SHAPES["residual"]), **lack)
    made, model = quick(name), network_of(SHAPES["residual"])
    if need in REPAIRS[name].needs:
        with pytest.raises(DataError, match=f"{name} needs.*{words}"):
            made.repair(model, lacking, generator=seeded(), sitting=Sitting())
    else:
        assert made.repair(model, lacking, generator=seeded(), sitting=Sitting()).stages


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name in REPAIRS for shape in ROWS[name].refuses]
)
def test_a_network_it_cannot_work_on_is_refused_with_what_it_needs(name: str, shape: str) -> None:
    with pytest.raises(CalibrationError, match=f"{name} {ROWS[name].refuses[shape]}"):
        run(name, shape)


@pytest.mark.slow
@by_name
def test_fifty_thousand_images_are_taken(name: str) -> None:
    chosen = Shape(train=50_000, held=500)
    done = quick(name).repair(network_of(chosen), supplies_of(chosen), generator=seeded(), sitting=Sitting())
    assert training.predict(done.model, supplies_of(chosen).held.images).isfinite().all()


@by_name
def test_images_of_one_class_only_do_no_harm_beyond_their_meaning(name: str) -> None:
    full = supplies_of(SHAPES["residual"])
    one = full.train.take(full.train.labels == 2)
    repeated = Labelled(one.images.repeat(4, 1, 1, 1), one.labels.repeat(4))
    done = quick(name).repair(
        network_of(SHAPES["residual"]),
        dataclasses.replace(full, train=repeated),
        generator=seeded(),
        sitting=Sitting(),
    )
    assert training.predict(done.model, full.held.images).isfinite().all()
