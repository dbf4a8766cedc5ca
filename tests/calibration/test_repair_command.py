"""``guard repair`` from end to end: what it writes, what it goes on from, what it says."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import DataError, OptionError  # noqa: E402
from calibration.repair import job  # noqa: E402
from calibration.repair.job import repair_model  # noqa: E402
from calibration.repair.options import RepairOptions  # noqa: E402
from calibration.repair.workbench import lay_out, split_by_class  # noqa: E402
from calibration.trainable import load_trainable  # noqa: E402
from guard.artifact.manifest import sha256_of  # noqa: E402
from guard.cli import main  # noqa: E402
from tests.calibration.repair_files import (  # noqa: E402
    CLASSES,
    QUICK,
    TRIGGER,
    backdoored,
    images_of,
    options_for,
    write,
    write_scan,
)


def flags(folder: Path, *more: str, method: str = "fine_tuning") -> list[str]:
    given = [
        str(folder / "model.onnx"),
        "--data",
        str(folder / "data.npz"),
        "--out",
        str(folder / "repaired"),
    ]
    words = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    return ["repair", *given, "--method", method, "--quiet", "--device", "cpu", *words, *more]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "repaired" / "repair.json").read_text())
    return found


def scores(path: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def rows(count: int = 160) -> tuple[np.ndarray, np.ndarray]:
    stored, labels = images_of(count, seed=77)
    return (stored.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32), labels


def test_it_writes_a_model_of_the_same_face_and_says_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    assert main(flags(tmp_path, "--trigger", str(tmp_path / "corner"), "--seed", "3")) == 0
    printed, out = capsys.readouterr(), tmp_path / "repaired"
    found, repaired = record(tmp_path), onnx.load(out / "model.onnx")
    assert printed.err == ""
    assert sorted(path.name for path in out.iterdir()) == [
        "model.onnx",
        "repair.html",
        "repair.json",
        "repair.md",
    ]
    assert load_trainable(out / "model.onnx").signature == load_trainable(tmp_path / "model.onnx").signature
    metadata = {entry.key: entry.value for entry in repaired.metadata_props}
    source = sha256_of((tmp_path / "model.onnx").read_bytes())
    assert metadata["method"] == "fine_tuning"
    assert metadata["repaired_by"].startswith("guard ")
    assert metadata["source_sha256"] == source == found["model"]["sha256"]
    assert found["repaired"]["sha256"] == sha256_of((out / "model.onnx").read_bytes())
    assert found["options"]["epochs"] == 2
    assert [stage["name"] for stage in found["stages"]] == ["fine-tune"]
    assert found["stages"][0]["images_per_second"] > 0
    assert (found["data"]["train"], found["data"]["held"], found["seed"]) == (144, 16, 3)
    assert found["before"]["triggers"]["corner"]["asr"]["value"] > 0.5
    assert found["before"]["acc"]["of"] == found["after"]["acc"]["of"] == 16
    for words in ("Repaired ", "Under triggers:", "corner", "next: guard calibrate --model", "Stages:"):
        assert words in " ".join(printed.out.split())  # lines are folded where a path is long
    document = (out / "repair.md").read_text()
    for words in ("# Repair of `", "## Options", "| epochs | 2 |", "guard calibrate --model", source):
        assert words in document


def test_what_it_says_to_run_next_runs_whatever_the_folder_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's my $HOME"
    write(folder)
    prepared = ["--mean", "0.25", "--std", "0.5", "2.0", "1.0", "--layout", "NCHW"]
    assert main(flags(folder, *prepared)) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line[:5] == "next:"]
    written = (folder / "repaired" / "repair.md").read_text().splitlines()
    assert [["next:", *shlex.split(line)] for line in written if line[:9] == "    guard"] == printed
    (_, _, *evaluate), (_, _, *calibrate) = printed
    data = str(folder / "data.npz")
    assert evaluate[-len(prepared) :] == calibrate[-len(prepared) :] == prepared
    assert calibrate[calibrate.index("--data") + 1] == data
    assert main([data if word == "TEST_IMAGES" else word for word in evaluate]) == 0


def test_what_is_measured_is_what_the_written_file_does(tmp_path: Path) -> None:
    repaired, (path, *_) = repair_model(options_for(tmp_path, triggers=(tmp_path / "corner",)))
    held = repaired.laid.supplies.held
    images, labels = held.images.numpy(), held.labels.numpy()
    assert repaired.after is not None
    assert repaired.after.acc is not None
    assert repaired.after.triggers[0].once is not None
    assert repaired.after.acc.value == (scores(path, images).argmax(1) == labels).mean()
    others = labels != TRIGGER.target_label
    turned = scores(path, TRIGGER.stamp(images[others])).argmax(1) == TRIGGER.target_label
    assert repaired.after.triggers[0].once.asr.value == turned.mean()


def test_a_longer_repair_takes_the_backdoor_out_and_keeps_the_accuracy(tmp_path: Path) -> None:
    options = options_for(
        tmp_path, settings={**QUICK, "epochs": 12, "batch": 16, "rate": 0.1, "drop_at": 0.7}
    )
    repair_model(options)
    images, labels = rows()
    before, after = tmp_path / "model.onnx", options.out / "model.onnx"
    stamped = TRIGGER.stamp(images[labels != 2])
    assert (scores(before, stamped).argmax(1) == 2).mean() > 0.8
    assert (scores(after, stamped).argmax(1) == 2).mean() < 0.3
    assert (scores(after, images).argmax(1) == labels).mean() > 0.85


@pytest.mark.parametrize(("norm", "softmax"), [(False, False), (True, True)])
def test_networks_without_norm_and_with_probabilities_come_through(
    tmp_path: Path, norm: bool, softmax: bool
) -> None:
    model = backdoored(norm, softmax)
    _, (path, *_) = repair_model(options_for(tmp_path, model))
    answers = scores(path, rows()[0])
    assert np.isfinite(answers).all()
    assert np.allclose(answers.sum(1), 1, atol=1e-4) == softmax
    found = record(tmp_path)
    assert found["model"]["output"] == ("probabilities" if softmax else "logits")
    assert found["model"]["norms_put_back"] == 2
    assert (answers.argmax(1) == rows()[1]).mean() > 0.8


def test_one_seed_is_one_file_and_another_is_another(tmp_path: Path) -> None:
    written = [
        repair_model(options_for(tmp_path / name, seed=seed))[0].sha256
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert written[0] == written[1] != written[2]


def test_a_repair_that_was_broken_off_goes_on_and_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "whole")
    assert main(flags(tmp_path / "whole")) == 0
    write(tmp_path / "broken")
    partial, steps = tmp_path / "broken" / "repaired" / "partial", []
    step = torch.optim.SGD.step

    def counting(optimiser: Any, *given: Any) -> Any:
        steps.append(1)
        if len(steps) == 7:  # in the second of two epochs of four steps
            raise KeyboardInterrupt
        return step(optimiser, *given)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counting)
        capsys.readouterr()
        assert main(flags(tmp_path / "broken")) == 130
    (checkpoint,) = partial.glob("*/*")
    assert checkpoint.name == "fine-tune.safetensors"
    assert capsys.readouterr().err == f"broken off; the same command goes on from {checkpoint.parent}\n"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counting)
        steps.clear()
        assert main(flags(tmp_path / "broken")) == 0
        assert len(steps) == 4
    assert not partial.exists()
    assert record(tmp_path / "broken")["repaired"] == record(tmp_path / "whole")["repaired"]


def test_another_seed_does_not_go_on_from_what_is_left_nor_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_measured", broken)
        for seed in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                repair_model(options_for(tmp_path, seed=seed))
        partial = tmp_path / "repaired" / "partial"
        assert len(list(partial.iterdir())) == 2
        for checkpoint in partial.glob("*/*"):
            checkpoint.write_bytes(b"damaged")
        with pytest.raises(KeyboardInterrupt):
            repair_model(options_for(tmp_path, seed=2, anew=True))
    assert sorted(path.read_bytes() == b"damaged" for path in partial.glob("*/*")) == [False, True]
    (partial / "scan.npz").touch()
    repair_model(options_for(tmp_path, seed=2))
    assert sorted(path.name == "scan.npz" for path in partial.iterdir()) == [False, True]


@pytest.mark.parametrize(("at", "told"), [("lay_out", False), ("_measured", True)])
def test_what_others_left_is_not_said_to_be_gone_on_from(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: str,
    told: bool,
) -> None:
    write(tmp_path)
    partial = tmp_path / "repaired" / "partial"
    (partial / "nad-0123").mkdir(parents=True)
    (partial / "nad-0123" / "teacher.safetensors").touch()

    def broken(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, at, broken)
    assert main(flags(tmp_path, "--anew")) == 130
    (own,) = partial.glob("fine_tuning-*") if told else (None,)
    said = f"broken off; the same command without --anew goes on from {own}\n" if told else ""
    assert capsys.readouterr().err == said


def test_a_model_that_no_repair_wrote_is_not_overwritten(tmp_path: Path) -> None:
    given = write(tmp_path)
    given["out"].mkdir()
    (given["out"] / "model.onnx").write_bytes(b"mine")
    with pytest.raises(OptionError, match=r"would overwrite a model\.onnx that no guard repair wrote"):
        RepairOptions(**given)
    (given["out"] / "repair.json").touch()
    RepairOptions(**given)


def test_a_scan_gives_the_triggers_that_it_flagged(tmp_path: Path) -> None:
    given = write(tmp_path)
    sha256 = sha256_of((tmp_path / "model.onnx").read_bytes())
    scan = write_scan(tmp_path / "scan", sha256)
    laid = lay_out(options_for(tmp_path, scan=scan))
    assert [known.name for known in laid.known] == ["neural_cleanse-2-patch"]
    assert laid.supplies.triggers == (TRIGGER,)
    assert main(flags(tmp_path, "--scan", str(scan))) == 0
    assert record(tmp_path)["triggers"] == ["neural_cleanse-2-patch"]
    assert given["data"].is_file()


def test_a_scan_of_another_model_is_refused(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan", "1" * 64)
    with pytest.raises(OptionError, match=r"--scan .* is of another model \(SHA-256 111111111111"):
        lay_out(options_for(tmp_path, scan=scan))


def test_a_scan_that_flagged_nothing_is_no_help_to_a_repair_that_needs_a_trigger(tmp_path: Path) -> None:
    write(tmp_path)
    scan = write_scan(tmp_path / "scan", sha256_of((tmp_path / "model.onnx").read_bytes()), flagged=False)
    assert lay_out(options_for(tmp_path, scan=scan)).notes == (
        "the scan flagged no label, so no trigger was tried",
    )
    with pytest.raises(DataError, match="flagged no label and so holds no trigger, and unlearning needs one"):
        lay_out(options_for(tmp_path, scan=scan, method="unlearning", settings={}))


def test_images_are_held_back_from_each_class() -> None:
    labels = np.array([0] * 50 + [1] * 12 + [2] * 2 + [3])
    train, held = split_by_class(labels, 0.1, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(65))
    assert np.bincount(labels[held], minlength=4).tolist() == [5, 1, 1, 0]
    assert len(split_by_class(labels, 0.0, np.random.default_rng(0))[1]) == 0


def test_mirroring_is_left_out_where_the_model_tells_left_from_right(tmp_path: Path) -> None:
    laid = lay_out(options_for(tmp_path))  # its classes are quarters of the image
    assert laid.supplies.augmentation.flip is False
    assert laid.mirror == "accuracy 100.0% as they are, 0.0% mirrored"
    assert laid.supplies.augmentation.padding == 1
    asked = lay_out(options_for(tmp_path, flip=True, padding=3)).supplies.augmentation
    assert (asked.flip, asked.padding) == (True, 3)


def test_mirroring_is_allowed_where_it_changes_nothing(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    images, labels = images_of()
    both = np.maximum(images, images[:, :, ::-1])
    np.savez(tmp_path / "data.npz", images=both, labels=labels)
    assert lay_out(options).supplies.augmentation.flip is True


def test_without_labels_a_repair_that_needs_them_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    np.savez(tmp_path / "data.npz", images=images_of()[0])
    assert main(flags(tmp_path)) == 2
    assert "fine_tuning needs the true labels of the clean images" in capsys.readouterr().err


def test_holding_nothing_back_measures_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    assert main(flags(tmp_path, "--held", "0")) == 0
    assert (record(tmp_path)["after"], record(tmp_path)["data"]["train"]) == (None, 160)
    assert "note: no images were held back" in capsys.readouterr().out


def test_a_training_set_reaches_the_repair(tmp_path: Path) -> None:
    options = options_for(tmp_path, training_set=tmp_path / "train.npz")
    images, labels = images_of(40, seed=4)
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    poisoned = lay_out(options).supplies.poisoned
    assert poisoned is not None
    np.testing.assert_allclose(poisoned.images.numpy(), images.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    assert np.array_equal(poisoned.labels.numpy(), labels)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--method nope", "--method nope: expected one of fine_tuning, "),
        ("--set epochs=many", "--set epochs=many: epochs was given before; give it once"),
        ("--set epoch=2", "--set epoch=2: fine_tuning has no option 'epoch'; expected one of epochs, "),
        ("--config gone.toml", "--config gone.toml cannot be read: "),
        ("--trigger gone", "gone/trigger.json: expected a trigger's parameters"),
        ("--scan gone", "--scan gone: expected the folder that guard scan --out wrote"),
        ("--data gone.npz", "--data gone.npz is not there; expected an .npz"),
        ("--out pyproject.toml", "--out pyproject.toml is a file; expected a folder"),
        ("--trigger {}/tiny", "trigger tiny cannot be put on images of 3 x 8 x 8"),
        ("--trigger {}/far", f"trigger far leads to class 9, the model has {CLASSES} (0 to 3)"),
        ("--training-set gone.npz", "--data gone.npz is not there"),
        ("--held 1", "--held 1.0: expected a share from 0 up to but not 1"),
        ("--mean 0.5 0.5", "--mean has 2 values, expected 1 or 3, one for each channel"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    from calibration.attacks.badnets import BadNets
    from calibration.attacks.inverted import Inverted
    from calibration.trigger import save_trigger

    write(tmp_path)
    tiny = Inverted(1, mask=np.ones((1, 3, 3), np.float32), pattern=np.ones((3, 3, 3), np.float32))
    save_trigger(tiny, tmp_path / "tiny")
    save_trigger(BadNets(9), tmp_path / "far")
    assert main(flags(tmp_path, *extra.replace("{}", str(tmp_path)).split())) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "repaired").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["repair"], "MODEL is missing: give guard repair MODEL --data CLEAN --out DIR, or --list"),
        (["repair", "m.onnx", "--data", "d.npz"], "--out DIR is missing: give guard repair MODEL"),
        (["repair", "m.onnx", "--out", "o"], "fine_tuning needs clean images; give them with --data"),
        (["repair", "m.pth", "--out", "o", "--data", "d.npz"], "m.pth is a pickle, and reading one runs"),
    ],
)
def test_what_is_missing_is_asked_for(
    capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    if given[1:]:
        given = [*given, "--method", "fine_tuning"]
    assert main(given) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("given", [["--list"], ["--explain", "fine_tuning"]])
def test_it_tells_of_repairs_without_a_model(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    assert main(["repair", *given]) == 0
    assert "fine_tuning" in capsys.readouterr().out


def test_its_help_needs_nothing_heavy() -> None:
    code = """
import contextlib, io, json, sys
from guard.cli import main
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    main(["repair", "--help"])
heavy = ("torch", "scipy", "matplotlib", "PIL", "tqdm", "onnxruntime", "ray")
print(json.dumps(["--training-set" in said.getvalue(), [name for name in heavy if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [True, []]
