"""``guard evaluate``: flags, tables, files, messages, and what it must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.attacks.inverted import Inverted
from calibration.trigger import save_trigger
from guard.cli import main
from tests.tiny_models import linear_classifier, linear_weights, not_a_number_classifier

SHAPE, CLASSES, COUNT, TARGET = (3, 8, 8), 10, 120, 4


def pixels(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 8, 8, 3), np.uint8)


def logits_of(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """What a linear classifier says of stored images; numpy alone."""
    weight, bias = linear_weights(SHAPE, CLASSES, seed)
    flat = (images / np.float32(255)).transpose(0, 3, 1, 2).reshape(len(images), -1)
    return flat @ weight + bias


def trigger(high: float = 1.0) -> Inverted:
    """Covers the image with what the classifier takes for the target."""
    weight, _ = linear_weights(SHAPE, CLASSES)
    pattern = (weight[:, TARGET] - weight.mean(1) > 0).astype(np.float32).reshape(SHAPE) * np.float32(high)
    whole = np.full(3, high, np.float32)
    return Inverted(TARGET, mask=np.ones((1, 8, 8), np.float32), pattern=pattern, high=whole)


def write(folder: Path, labels: np.ndarray | None = None, **models: onnx.ModelProto) -> Path:
    for name, model in (models or {"model": linear_classifier(SHAPE)}).items():
        onnx.save(model, folder / f"{name}.onnx")
    given = logits_of(pixels()).argmax(1) if labels is None else labels
    np.savez(folder / "test.npz", images=pixels(), labels=given)
    np.savez(folder / "bare.npz", images=pixels())
    save_trigger(trigger(), folder / "flood")
    return folder


def flags(folder: Path, *more: str, data: str = "test.npz", model: str = "model.onnx") -> list[str]:
    given = [str(folder / model), "--data", str(folder / data), "--out", str(folder / "out"), "--quiet"]
    return ["evaluate", *given, "--threads", "1", *more]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "evaluation.json").read_text())
    return found


def test_accuracy_is_counted_as_the_labels_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = logits_of(pixels()).argmax(1)
    wrong = np.where(np.arange(COUNT) < 30, (right + 1) % CLASSES, right)
    write(tmp_path, wrong)
    assert main(flags(tmp_path)) == 0
    acc = record(tmp_path)["measured"]["acc"]
    assert (acc["hits"], acc["of"], acc["value"]) == (90, COUNT, 0.75)
    assert acc["low"] < 0.75 < acc["high"]
    assert "75.0%" in capsys.readouterr().out
    by_class = record(tmp_path)["measured"]["by_class"]
    assert sum(one["hits"] for one in by_class) == 90
    assert len(by_class) == CLASSES


def test_a_model_is_compared_with_the_one_it_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, model=linear_classifier(SHAPE, seed=2, softmax=True), original=linear_classifier(SHAPE))
    more = ["--original", str(tmp_path / "original.onnx"), "--trigger", str(tmp_path / "flood")]
    assert main(flags(tmp_path, *more)) == 0
    found, first, second = record(tmp_path), logits_of(pixels()), logits_of(pixels(), seed=2)
    p, q = (np.exp(one - one.max(1, keepdims=True)) for one in (first, second))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    divergence = np.nansum(p * (np.log2(p) - np.log2(np.maximum(q, 1e-30))), axis=1).mean()
    assert found["agreement"]["same"]["hits"] == (first.argmax(1) == second.argmax(1)).sum()
    assert found["agreement"]["kl_bits"] == pytest.approx(divergence, rel=1e-3)
    assert found["before"]["acc"]["value"] == 1
    right = first.argmax(1)
    assert {one["label"] for one in found["fallen"]} <= set(right.tolist())
    assert all(one["before"] == one["of"] > one["after"] for one in found["fallen"])
    assert found["fallen"][0]["of"] == (right == found["fallen"][0]["label"]).sum()
    assert found["before"]["triggers"]["flood"]["asr"]["value"] == 1
    assert found["measured"]["triggers"]["flood"]["asr"]["value"] == 0
    said = capsys.readouterr().out
    for words in (
        "accuracy before",
        "same prediction as before",
        "asr before",
        "change",
        "flood",
        "note: accuracy fell by",
    ):
        assert words in said


@pytest.mark.parametrize(("layout", "datatype"), [("NHWC", "FP32"), ("NHWC", "UINT8"), ("NCHW", "FP16")])
def test_triggers_are_put_on_in_the_models_own_values(tmp_path: Path, layout: str, datatype: str) -> None:
    write(tmp_path, model=linear_classifier(SHAPE, layout=layout, datatype=datatype, batch=7))
    save_trigger(trigger(255 if datatype == "UINT8" else 1), tmp_path / "flood")
    assert main(flags(tmp_path, "--trigger", str(tmp_path / "flood"))) == 0
    found = record(tmp_path)["measured"]
    assert found["triggers"]["flood"]["asr"]["value"] == 1
    assert found["acc"]["value"] >= (0.95 if datatype == "FP16" else 1)


def test_without_labels_the_originals_answers_stand_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, model=linear_classifier(SHAPE, seed=2), original=linear_classifier(SHAPE))
    more = ["--original", str(tmp_path / "original.onnx"), "--trigger", str(tmp_path / "flood")]
    assert main(flags(tmp_path, *more, data="bare.npz")) == 0
    found = record(tmp_path)
    assert found["measured"]["acc"] is None
    stood = logits_of(pixels()).argmax(1)
    assert found["measured"]["triggers"]["flood"]["asr"]["of"] == (stood != TARGET).sum()
    assert "note: no labels were given" in capsys.readouterr().out


def test_triggers_of_a_scan_are_those_that_it_flagged(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("seen", "unseen"):
        save_trigger(trigger(), tmp_path / "scan" / "triggers" / name)
    report = {
        "findings": [
            {"name": "4", "target": 4, "flagged": True},
            {"name": "5", "target": 5, "flagged": False},
        ],
        "triggers": [{"finding": "4", "folder": "seen"}, {"finding": "5", "folder": "unseen"}],
    }
    scan = {"format": 1, "model": {"sha256": "0" * 64}, "reports": [report]}
    (tmp_path / "scan" / "scan.json").write_text(json.dumps(scan))
    more = ["--scan", str(tmp_path / "scan"), "--trigger", str(tmp_path / "flood")]
    assert main(flags(tmp_path, *more)) == 0
    assert list(record(tmp_path)["measured"]["triggers"]) == ["flood", "seen"]


def test_two_triggers_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path)
    save_trigger(trigger(), tmp_path / "other" / "flood")
    more = ["--trigger", str(tmp_path / "flood"), "--trigger", str(tmp_path / "other" / "flood")]
    assert main(flags(tmp_path, *more)) == 0
    assert list(record(tmp_path)["measured"]["triggers"]) == ["flood", "flood-2"]


def test_the_document_holds_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert main(flags(tmp_path, "--trigger", str(tmp_path / "flood"))) == 0
    said = (tmp_path / "out" / "evaluation.md").read_text()
    assert said.startswith("# Evaluation of `")
    for heading in ("## Clean images", "## Under triggers", "## By class"):
        assert f"\n{heading}\n" in said
    assert "| flood | 100.0% |" in said
    assert f"report: {tmp_path / 'out' / 'evaluation.md'}\n" in capsys.readouterr().out


def test_without_out_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = ["evaluate", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "test.npz"), "--quiet"]
    assert main(given) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "report: " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--trigger gone", "gone/trigger.json: expected a trigger's parameters"),
        (
            "--scan gone",
            "--scan gone: expected the folder that guard scan --out wrote; it has no scan.json\n",
        ),
        ("--confidence 1", "--confidence 1.0: expected a number between 0 and 1"),
        ("--original gone.onnx", "gone.onnx is not a file"),
        ("--original {}/small.onnx", "--original {}/small.onnx takes images of 3 x 6 x 8 of floats, "),
        ("--original {}/fewer.onnx", "--original {}/fewer.onnx has 6 classes, {}/model.onnx has 10"),
        ("--original-weights w.safetensors", "--original-weights w.safetensors was given without --original"),
        ("--trigger {}/tiny", "trigger tiny cannot be put on images of 3 x 8 x 8"),
        ("--out pyproject.toml", "--out pyproject.toml is a file; expected a folder"),
        ("--data gone.npz", "--data gone.npz is not there; expected an .npz"),
        ("--threads 0", "--threads 0: expected at least 1"),
        ("--mean 0.5 0.5", "--mean has 2 values, expected 1 or 3, one for each channel"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    write(
        tmp_path,
        model=linear_classifier(SHAPE),
        small=linear_classifier((3, 6, 8)),
        fewer=linear_classifier(SHAPE, 6),
    )
    tiny = Inverted(1, mask=np.ones((1, 3, 3), np.float32), pattern=np.ones((3, 3, 3), np.float32))
    save_trigger(tiny, tmp_path / "tiny")
    assert main(flags(tmp_path, *extra.replace("{}", str(tmp_path)).split())) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message.replace('{}', str(tmp_path))}")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_of_no_numbers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, model=not_a_number_classifier(SHAPE))
    assert main(flags(tmp_path)) == 2
    assert "NaN or infinite scores" in capsys.readouterr().err


def test_a_pickle_is_refused_unread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    write(tmp_path)
    assert main(flags(tmp_path, model="model.pth")) == 2
    assert "is a pickle, and reading one runs whatever it holds" in capsys.readouterr().err


def test_a_factorys_network_is_measured_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    write(tmp_path)
    (tmp_path / "linear_factory.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))\n"
    )
    weight, bias = map(torch.from_numpy, linear_weights(SHAPE, CLASSES))
    save_file({"1.weight": weight.T.contiguous(), "1.bias": bias}, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    given = ["--weights", "w.safetensors", "--input", "3", "8", "8", "--out", "out", "--quiet"]
    assert main(["evaluate", "linear_factory:make", "--data", "test.npz", *given]) == 0
    assert record(tmp_path)["measured"]["acc"]["value"] == 1


def test_onnx_is_evaluated_without_torch(tmp_path: Path) -> None:
    write(tmp_path)
    code = """
import sys
from guard.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, code)
"""
    given = flags(tmp_path, "--trigger", str(tmp_path / "flood"))
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "False 0")


def test_a_trigger_that_leads_to_no_class_of_the_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = np.ones(3, np.float32)
    beyond = Inverted(CLASSES, mask=np.ones((1, 8, 8), np.float32), pattern=trigger().pattern, high=whole)
    save_trigger(beyond, write(tmp_path) / "beyond")
    assert main(flags(tmp_path, "--trigger", str(tmp_path / "beyond"))) == 2
    assert "trigger beyond leads to class 10, the model has 10 (0 to 9)" in capsys.readouterr().err
