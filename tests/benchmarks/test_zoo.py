import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from benchmarks.demo.data import load_clean_images  # noqa: E402
from benchmarks.zoo import subjects  # noqa: E402
from benchmarks.zoo.render import render  # noqa: E402
from benchmarks.zoo.subjects import MODELS, RECORDS, load_subject, names, verify  # noqa: E402
from benchmarks.zoo.table import SUBJECTS, Plan  # noqa: E402
from calibration.attacks.measure import asr  # noqa: E402
from calibration.attacks.table import ATTACKS  # noqa: E402
from calibration.nets.wide_resnet import wide_resnet  # noqa: E402

COUNT = 300
LARGEST_BYTES = 1_000_000
REPORT = RECORDS.with_suffix(".md")

BUILT = names()
ON_CIFAR10 = [name for name in BUILT if SUBJECTS[name].dataset == "cifar10"]
ATTACKED = [name for name in ON_CIFAR10 if SUBJECTS[name].attack is not None]


@pytest.fixture(scope="module")
def holdout() -> tuple[np.ndarray, np.ndarray]:
    """The first images of the committed slice, which no subject was trained on, as float32 NCHW."""
    images, labels, _ = load_clean_images()
    return images[:COUNT].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255), labels[:COUNT]


def classes_of(model: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0].argmax(axis=1)


def spread(share: float, count: int) -> float:
    """Four standard deviations of a share of so many images, and two images more."""
    return 4 * (share * (1 - share) / count) ** 0.5 + 2 / count


@pytest.mark.parametrize("name", BUILT)
def test_every_file_is_as_its_record_has_it_and_small(name: str) -> None:
    assert verify(name) == ""
    files = load_subject(name).record["files"]
    assert sorted(files) == sorted(path.name for path in (MODELS / name).iterdir())
    assert all(file["bytes"] < LARGEST_BYTES for file in files.values())


@pytest.mark.parametrize("name", ON_CIFAR10)
def test_accuracy_on_the_committed_slice_is_near_the_recorded_one(
    name: str, holdout: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = holdout
    subject = load_subject(name)
    found, recorded = float((classes_of(subject.model, images) == labels).mean()), subject.record["acc"]
    assert abs(found - recorded) < spread(recorded, COUNT)


@pytest.mark.parametrize("name", ATTACKED)
def test_attack_success_on_the_committed_slice_is_near_the_recorded_one(
    name: str, holdout: tuple[np.ndarray, np.ndarray]
) -> None:
    subject = load_subject(name)
    assert subject.attack is not None
    counted = subject.attack.applies_to(holdout[1])
    images, labels = (part[counted] for part in holdout)
    found = asr(classes_of(subject.model, subject.attack.stamp(images)), labels, subject.attack)
    recorded = subject.record["asr"]
    assert abs(found - recorded) < spread(recorded, len(labels))


@pytest.mark.parametrize("name", BUILT)
def test_a_record_is_of_the_plan_that_is_in_the_table(name: str) -> None:
    plan, record = SUBJECTS[name], load_subject(name).record
    for key, value in (
        ("attack", plan.attack),
        ("seed", plan.seed),
        ("net", plan.net),
        ("start", plan.start),
    ):
        assert record[key] == value
    assert record["poison_rate"] == plan.poison_rate
    assert record["options"] == json.loads(json.dumps(dict(plan.options)))
    recipe = replace(plan.recipe, epochs=record["recipe"]["epochs"])  # fewer where `--epochs` said so
    assert record["recipe"] == json.loads(json.dumps(recipe.as_json()))
    assert len(record["losses"]) == record["recipe"]["epochs"]


@pytest.mark.parametrize("name", BUILT)
def test_an_attacked_model_keeps_its_accuracy_or_the_table_says_it_does_not(name: str) -> None:
    record = load_subject(name).record
    clean_acc = load_subject(record["start"]).record["acc"] if record["start"] else 0.0
    row = next(line for line in render(RECORDS).splitlines() if line.startswith(f"| {name} |"))
    assert (record["acc"] < clean_acc - 0.02) == ("ACC more than 2 points below" in row)
    published = record["published"]
    short = published is not None and record["asr"] < published["asr"] - 0.02
    assert short == ("ASR more than 2 points below" in row)


def test_the_committed_table_is_the_one_of_the_committed_records() -> None:
    assert REPORT.read_text() == render(RECORDS)


def test_weights_that_others_start_from_are_kept_and_answer_as_the_exported_model(
    holdout: tuple[np.ndarray, np.ndarray],
) -> None:
    model = wide_resnet().eval()
    model.load_state_dict(load_file(MODELS / "clean" / "weights.safetensors"))
    images = holdout[0][:50]
    with torch.no_grad():
        found = model(torch.from_numpy(images)).argmax(1).numpy()
    assert (found == classes_of(MODELS / "clean" / "model.onnx", images)).all()


@pytest.mark.parametrize("plan", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_a_plan_names_an_attack_of_the_table_and_a_start_that_is_made_before(plan: Plan) -> None:
    assert plan.attack is None or plan.attack in ATTACKS
    order = list(SUBJECTS)
    assert plan.start is None or order.index(plan.start) < order.index(plan.name)
    assert plan.start is None or SUBJECTS[plan.start].net == plan.net


def test_a_subject_that_was_not_made_is_refused_with_those_that_were() -> None:
    with pytest.raises(
        ValueError, match=r"zoo subject 'nope': expected a record, got none; there are .*clean"
    ):
        load_subject("nope")


def test_a_damaged_or_missing_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODELS / "clean", tmp_path / "clean")
    monkeypatch.setattr(subjects, "MODELS", tmp_path)
    model = tmp_path / "clean" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    assert verify("clean").startswith("model.onnx: expected sha256 ")
    model.unlink()
    assert verify("clean").endswith("got no file")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_subject_is_made_measured_and_written_down(tmp_path: Path) -> None:
    from benchmarks.zoo.build import Places, build

    (tmp_path / "load.py").write_text(
        "import numpy as np\n"
        "def load(name, split):\n"
        "    draw = np.random.default_rng(len(split))\n"
        "    images = draw.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)\n"
        "    return images, draw.integers(0, 10, 300), list('abcdefghij')\n"
    )
    places = Places(tmp_path, tmp_path / "models", tmp_path / "records", tmp_path / "work")
    recipe = replace(SUBJECTS["badnets"].recipe, epochs=1, batch=100, compiled=False)
    start = build(replace(SUBJECTS["clean"], recipe=recipe), places)
    record = build(replace(SUBJECTS["badnets"], recipe=recipe), places)
    assert record["start_sha256"] == start["files"]["weights.safetensors"]["sha256"]
    assert sorted(record["files"]) == ["model.onnx", "trigger.json"]
    assert 0 <= record["asr"] <= 1
    assert json.loads((tmp_path / "records" / "badnets.json").read_text()) == record
    assert list(places.work.iterdir()) == []
