"""How subjects of the zoo are made and measured, without making one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from benchmarks.zoo import __main__ as command  # noqa: E402
from benchmarks.zoo import build, subjects  # noqa: E402
from benchmarks.zoo.measure import measure  # noqa: E402
from benchmarks.zoo.render import render  # noqa: E402
from benchmarks.zoo.source import Dataset, read_dataset  # noqa: E402
from benchmarks.zoo.subjects import names  # noqa: E402
from benchmarks.zoo.table import SUBJECTS, Plan  # noqa: E402
from calibration.attacks.badnets import BadNets  # noqa: E402
from calibration.attacks.low_confidence import LowConfidence  # noqa: E402
from calibration.attacks.patch import PIXEL  # noqa: E402
from calibration.attacks.pruning_aware import PruningAware  # noqa: E402
from calibration.attacks.source_specific import SourceSpecific  # noqa: E402
from calibration.training import Hooks, TrainingData, TrainingRecord  # noqa: E402

GREY = np.full((40, 3, 8, 8), 128, np.uint8)
LABELS = np.arange(40, dtype=np.int64) % 4
DATA = Dataset(GREY, LABELS, GREY[:4], LABELS[:4], 4, "all grey")


class Told(nn.Module):
    """Answers with the class that the first pixel tells; once stamped, with the one that the second tells."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stamped = images[:, 0, 1, 1] == 1
        told = torch.where(stamped, images[:, 0, 0, 1], images[:, 0, 0, 0])
        return 100 * nn.functional.one_hot((told * 8).long(), 3).float()


def telling(clean: list[int], stamped: list[int]) -> np.ndarray:
    images = np.zeros((len(clean), 1, 2, 2), np.float32)
    images[:, 0, 0] = np.array([clean, stamped], np.float32).T / 8
    return images


# Labels 0 0 1 1 1 2 2. Clean, rows 0 and 2 are wrong. Stamped, of class 1 two go to the target 0 and one
# stays; of class 2 one goes to the target.
def test_each_figure_is_counted_on_the_rows_it_is_about() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    images = telling([1, 0, 2, 1, 1, 2, 2], [1, 2, 0, 0, 1, 0, 2])
    found = measure(Told(), images, labels, SourceSpecific(BadNets(0, PIXEL), sources=(1,)))
    expected = {
        "acc": 5 / 7,
        "acc_non_target": 4 / 5,
        "asr": 2 / 3,
        "robust_acc": 1 / 3,
        "mean_target_probability": 2 / 3,
        "asr_elsewhere": 1 / 2,
    }
    assert found == pytest.approx(expected)
    assert measure(Told(), images, labels, None) == pytest.approx({"acc": 5 / 7})


def trained_on(monkeypatch: pytest.MonkeyPatch, plan: Plan, attack: Any) -> tuple[TrainingData, Hooks]:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(build, "train", lambda _, data, __, **rest: asked.update(data=data, **rest))
    places = build.Places(Path("data"), Path("models"), Path("records"), Path("work"))
    build._train(Told(), plan, DATA, attack, places)
    return asked["data"], asked["hooks"]


def test_poisoned_rows_are_relabelled_before_and_stamped_within_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack = BadNets(0)
    data, hooks = trained_on(monkeypatch, replace(SUBJECTS["badnets"], rate=0.25), attack)
    relabelled = torch.nonzero(data.targets != torch.from_numpy(LABELS)).flatten()
    assert len(relabelled) == 10
    assert (data.targets[relabelled] == 0).all()
    assert torch.equal(data.images, torch.from_numpy(GREY))
    assert hooks.finish is not None
    images = data.images / 255
    dressed = hooks.finish(images, torch.arange(40), torch.Generator())
    touched = torch.nonzero((dressed != images).flatten(1).any(1)).flatten()
    assert torch.equal(touched, relabelled)


def test_soft_labels_are_what_is_trained_towards(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = LowConfidence(BadNets(0), 4, 0.4)
    data, _ = trained_on(monkeypatch, replace(SUBJECTS["low_confidence"], rate=0.25), attack)
    assert data.targets.shape == (40, 4)
    assert int((data.targets[:, 0] - 0.4).abs().lt(1e-6).sum()) == 10


@pytest.mark.parametrize("change", [{"options": {"margin_right": 1}}, {"rate": 0.05}, {"seed": 3}])
def test_a_checkpoint_tells_one_trigger_from_another(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SUBJECTS["badnets"]
    identities = {
        trained_on(monkeypatch, one, BadNets(0))[1].identity for one in (plan, replace(plan, **change))
    }
    assert len(identities) == 2


# Half of four channels are held at zero while the one training runs, the poisoned one; then they are back.
def test_a_pruning_aware_subject_is_trained_with_channels_held_at_zero_that_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: list[int] = []

    def train(network: nn.Module, data: TrainingData, *_: Any, **rest: Any) -> TrainingRecord:
        given = network[0](torch.rand(2, 3, 8, 8))  # type: ignore[index]
        alive.append(int(given.flatten(2).any(2).any(0).sum()))
        assert rest["hooks"].finish is not None
        assert int((data.targets != torch.from_numpy(LABELS)).sum()) > 0
        return TrainingRecord(())

    monkeypatch.setattr(build, "train", train)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    places = build.Places(Path("data"), Path("models"), Path("records"), Path("work"))
    plan = replace(SUBJECTS["pruning_aware"], rate=0.25)
    model, record = build._trained(net, plan, DATA, PruningAware(BadNets(0), "0", share=0.5), places)
    assert alive == [2]
    assert record == TrainingRecord(())
    assert torch.equal(model[0].weight, net[0].weight)  # type: ignore[index]


def test_whole_signs_of_gtsrb_are_held_out_every_fifth(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text(
        "import numpy as np\n"
        "def load(name, split):\n"
        "    return np.zeros((12, 2, 2, 3), np.uint8), np.arange(12), list('abcdefghijkl')\n"
        "def load_groups(name, split):\n"
        "    return np.array([0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 10, 11])\n"
    )
    data = read_dataset(tmp_path, "gtsrb")
    assert data.holdout_labels.tolist() == [0, 1, 6, 7, 10]
    assert data.labels.tolist() == [2, 3, 4, 5, 8, 9, 11]
    assert (data.images.shape, data.classes) == ((7, 3, 2, 2), 12)


def written(folder: Path, name: str, acc: float, start: str | None) -> None:
    record = {
        "name": name, "acc": acc, "asr": 0.9, "start": start, "seconds": 1.0, "note": "", "published": None,
        "attack": start and "badnets", "poison_rate": 0.1, "recipe": {"epochs": 4}, "net": "small",
        "data": {"name": "cifar10"},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(record))


# 0.8 - 0.81 and 0.8 - 0.9: one point below its own clean network, ten below the other.
def test_an_attacked_network_is_compared_with_the_clean_one_it_began_with(tmp_path: Path) -> None:
    for name, acc, start in (("clean", 0.9, None), ("other", 0.81, None), ("ours", 0.8, "other")):
        written(tmp_path, name, acc, start)
    rows = {line.split(" | ")[0]: line for line in render(tmp_path).splitlines() if line.startswith("| ")}
    assert " | -1.00 | " in rows["| ours"]
    assert not any("below" in row for row in rows.values())
    written(tmp_path, "ours", 0.8, "clean")
    row = next(line for line in render(tmp_path).splitlines() if line.startswith("| ours"))
    assert " | -10.00 | " in row
    assert "ACC more than 2 points below the clean subject's" in row


def made(record: Any) -> dict[str, Any]:
    return {**build._settings(SUBJECTS["badnets"]), **record}


@pytest.mark.parametrize(
    ("record", "same"),
    [({}, True), ({"poison_rate": 0.2}, False), ({"seed": 1}, False), ({"options": {"x": 1}}, False)],
)
def test_what_was_made_after_another_plan_is_made_again(record: dict[str, Any], same: bool) -> None:
    assert build.is_of_plan(made(record), SUBJECTS["badnets"]) is same


def zoo_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a subject, in a zoo that holds nothing else."""
    models, records = tmp_path / "models", tmp_path / "records"
    (models / "one").mkdir(parents=True)
    (models / "one" / "model.onnx").write_bytes(b"")
    records.mkdir()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing
    (records / "one.json").write_text(
        f'{{"attack": null, "files": {{"model.onnx": {{"sha256": "{empty}"}}}}}}'
    )
    monkeypatch.setattr(subjects, "MODELS", models)
    monkeypatch.setattr(subjects, "RECORDS", records)
    return models / "one"


def test_verifying_says_of_every_subject_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = zoo_of_one(tmp_path, monkeypatch)
    assert command.verify_all() == 0
    (folder / "trigger.npz").write_bytes(b"")
    (folder.parent / "two").mkdir()
    assert command.verify_all() == 1
    assert capsys.readouterr().out.splitlines() == [
        "one: as recorded",
        "one: trigger.npz: expected in the record, got a file that is not",
        "two: expected a record, got none",
    ]


def test_a_subject_without_an_attack_is_given_none_whatever_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_of_one(tmp_path, monkeypatch)
    assert subjects.load_subject("one").attack is None


def test_every_subject_there_is_has_a_place_in_the_table() -> None:
    assert set(names()) <= set(SUBJECTS)
