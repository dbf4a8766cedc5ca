"""The command: flags, exit codes, messages, and what it must not import."""

from __future__ import annotations

import argparse
import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from calibration.cli import CALIBRATE
from calibration.errors import OptionError
from calibration.options import CalibrateOptions
from guard.artifact import read_artifact
from guard.cli import main
from tests.calibration.calibration_subjects import pixels, write_subject

WITH_EXAMPLES = [
    "calibration.outputs",
    "calibration.scoring",
    "calibration.split",
    "calibration.threshold",
]


def flags(subject: dict[str, object]) -> list[str]:
    named = ("model", "data", "out", "overlays", "seed", "device", "threads")
    return ["calibrate", *(part for name in named for part in (f"--{name}", str(subject[name]))), "--quiet"]


def test_calibrate_is_a_subcommand_of_guard(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "--help"])
    assert stopped.value.code == 0
    assert "--frr" in capsys.readouterr().out


def test_it_prints_the_summary_and_leaves_a_verifiable_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(write_subject(tmp_path))) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("calibrated tiny on 352 of 360 images")
    artifact = tmp_path / "repository" / "tiny" / "1"
    assert sorted(path.name for path in artifact.iterdir()) == [
        "entropies.png",
        "manifest.json",
        "model.onnx",
        "opinions.npz",
        "overlays.npy",
        "probe.npz",
        "profile.json",
        "report.json",
    ]
    assert main(["verify", str(artifact)]) == 0


def test_every_flag_reaches_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = (pixels() / 255).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)
    subject = write_subject(tmp_path, images=images)
    np.save(tmp_path / "labels.npy", np.arange(len(images)) % 10)
    more = (
        "--frr 0.05 --confidence 0.9 --blend half_clip --name other --range -1 2 --resize 9 8 --layout NCHW"
    )
    preprocessing = "--capabilities off --scale 2 --mean 0.5 0.4 0.3 --std 1 1 2 --crop 8 8 --colour BGR"
    labels = ["--labels", str(tmp_path / "labels.npy")]
    assert main([*flags(subject), *more.split(), *preprocessing.split(), *labels]) == 0
    profile = read_artifact(tmp_path / "repository" / "tiny" / "1").profile
    assert (profile.model_name, profile.check.blend, profile.check.n_overlays) == ("other", "half_clip", 8)
    assert (profile.boundary.frr, profile.boundary.confidence) == (0.05, pytest.approx(0.9))
    assert profile.preprocessing.model_dump() == {
        "scale": 2.0,
        "mean": (0.5, 0.4, 0.3),
        "std": (1.0, 1.0, 2.0),
        "resize": (9, 8),
        "crop": (8, 8),
        "colour": "BGR",
        "orientation": "ignore",
        "eight_bit": False,
    }
    np.testing.assert_allclose(profile.input.low, (-2.5, -2.4, -1.15))
    np.testing.assert_allclose(profile.input.high, (3.5, 3.6, 1.85), rtol=1e-6)
    assert profile.calibration.accuracy is not None
    assert "with 90.0% confidence" in capsys.readouterr().out


def test_an_error_is_one_line_on_stderr_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(write_subject(tmp_path, images=pixels(20)))) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "holds 20 images, expected at least 307" in printed.err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--frr 1.5", "--frr 1.5: expected a rate between 0 and 1, such as 0.01"),
        ("--confidence 0", "--confidence 0.0: expected between 0 and 1, such as 0.95"),
        ("--overlays 0", "--overlays 0: expected at least 1"),
        ("--threads 0", "--threads 0: expected at least 1"),
        ("--seed -1", "--seed -1: expected a whole number from 0"),
        ("--scale 0", "--scale 0.0: expected a number other than 0"),
        ("--std 1 0 1", "--std (1.0, 0.0, 1.0): expected positive numbers"),
        ("--mean nan", "--mean (nan,): expected finite numbers"),
        (
            "--resize 0 8",
            "--resize (0, 8): expected height and width, or the shorter side, of at least 1",
        ),
        ("--resize 1 2 3", "--resize (1, 2, 3): expected height and width, or the shorter side"),
        ("--crop 0 8", "--crop (0, 8): expected height and width of at least 1"),
        ("--range 1 0", "--range 1 0: expected a low value and a higher one"),
        ("--name a/b", "model name 'a/b': expected letters, digits, '_', '-' and '.' (see --name)"),
        ("--out repository/m/3", "--out repository/m/3 ends in a version; expected REPOSITORY/MODEL"),
        ("--out pyproject.toml", "--out pyproject.toml is a file; expected a directory, REPOSITORY/MODEL"),
        ("--model gone.onnx", "gone.onnx is not a file; expected an ONNX model, check the path"),
    ],
)
def test_a_wrong_flag_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    subject = write_subject(tmp_path)
    assert main([*flags(subject), *extra.split()]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_weights_beside_the_model_must_be_there_and_be_no_link_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = write_subject(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        onnx.load(subject["model"]),
        folder / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    arguments = flags({**subject, "model": folder / "m.onnx"})
    (folder / "w.bin").rename(tmp_path / "w.bin")
    assert main(arguments) == 2
    assert f"keeps weights in 'w.bin', which is not in {folder}; put it there" in capsys.readouterr().err
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    assert main(arguments) == 2
    assert f"w.bin is a link out of {folder}; put the file itself there" in capsys.readouterr().err


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_calibrating_never_imports_torch_and_declaring_its_flags_nothing_heavy(tmp_path: Path) -> None:
    code = """
import json, sys
import calibration.cli
heavy = ("scipy", "matplotlib", "PIL", "tqdm", "onnxruntime", "torch")
declared = [name for name in heavy if name in sys.modules]
from guard.cli import main
code = main(sys.argv[1:])
loaded = [name in sys.modules for name in ("torch", "matplotlib.pyplot", "scipy")]
print(json.dumps([declared, code, loaded]))
"""
    assert json.loads(run_python(code, *flags(write_subject(tmp_path)))) == [[], 0, [False, False, True]]


def test_a_missing_extra_is_named_in_one_line(tmp_path: Path) -> None:
    code = """
import contextlib, io, json, sys
from guard.cli import main
said = {}
for missing in ("onnxruntime", "matplotlib", "tqdm", "scipy", "PIL"):  # in the order they are met
    for name in [name for name in sys.modules if name.startswith(("calibration.", "guard.runtime", missing))]:
        del sys.modules[name]
    sys.modules[missing] = None
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(sys.argv[1:])
    said[missing] = [code, error.getvalue()]
    del sys.modules[missing]
print(json.dumps(said))
"""
    said = json.loads(run_python(code, *flags(write_subject(tmp_path))))
    needs = "guard calibrate needs the extra '{0}': pip install 'inference-guard[{0}]'\n"
    extras = {"onnxruntime": "cpu", **dict.fromkeys(("matplotlib", "tqdm", "scipy", "PIL"), "calibrate")}
    assert said == {package: [2, needs.format(extra)] for package, extra in extras.items()}


def test_a_module_missing_for_another_reason_is_not_blamed_on_an_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'nope'", name="nope")

    monkeypatch.setattr("calibration.cli._run", broken)
    with pytest.raises(ModuleNotFoundError, match="nope"):
        CALIBRATE.run(argparse.Namespace())


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_the_docs_are_true(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_a_repository_given_in_place_of_a_model_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "repository" / "mnist" / "1").mkdir(parents=True)
    with pytest.raises(
        OptionError, match=r"is a model repository \(it holds 'mnist'\); expected REPOSITORY/MODEL"
    ):
        CalibrateOptions(model=tmp_path / "m.onnx", data=tmp_path / "d.npz", out=tmp_path / "repository")


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OptionError, match=rf"cannot be written: no permission in {tmp_path}; choose another"):
        CalibrateOptions(
            model=tmp_path / "m.onnx", data=tmp_path / "d.npz", out=tmp_path / "repository" / "m"
        )
