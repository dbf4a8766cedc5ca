"""``guard scan``: flags, exit codes, messages, and what it must not import."""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402

from calibration.scan import job  # noqa: E402
from calibration.scan.base import Verdict  # noqa: E402
from guard.cli import main  # noqa: E402
from tests.calibration.scan_files import QUICK, answers, images_of, write  # noqa: E402


def flags(folder: Path, *more: str, data: str | None = "data.npz", model: str = "model.onnx") -> list[str]:
    given = ["--data", str(folder / data)] if data else []
    rest = ["--scanners", "neural_cleanse", "--config", str(folder / "quick.toml"), "--quiet"]
    return ["scan", str(folder / model), *given, "--out", str(folder / "scan"), *rest, *more]


def test_scan_is_a_subcommand_and_its_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["scan", "--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "exit code 0 clean, 3 backdoored, 4 inconclusive" in said
    for flag in ("--data", "--targets", "--steps", "--config", "--training-set", "--executor", "--anew"):
        assert flag in said


def test_it_prints_the_verdict_and_where_the_reports_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    code = main(flags(tmp_path))
    printed = capsys.readouterr()
    found = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert code == job.EXIT_CODES[found["verdict"]]
    assert printed.err == ""
    assert printed.out.startswith(found["verdict"].upper() + ": ")
    assert f"report: {tmp_path / 'scan' / 'scan.html'}\n" in printed.out
    assert printed.out.endswith("triggers\n")
    assert "\n\n\n" not in printed.out


@pytest.mark.parametrize(("verdict", "code"), [("clean", 0), ("backdoored", 3), ("inconclusive", 4)])
def test_the_exit_code_is_the_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int
) -> None:
    write(tmp_path)
    monkeypatch.setattr(job, "combined", lambda reports, doubtful: verdict)
    assert main(flags(tmp_path)) == code


def test_lines_of_reasons_and_notes_fit_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    write(tmp_path)
    np.savez(tmp_path / "bare.npz", images=images_of())
    main(flags(tmp_path, data="bare.npz"))
    lines = capsys.readouterr().out.splitlines()
    wrapped = [line for line in lines[2:] if not line.startswith("report: ")]
    assert max(map(len, wrapped)) <= 70
    assert any(line.startswith("note: no labels were given") for line in lines)


def test_every_flag_reaches_the_scan(tmp_path: Path) -> None:
    images = images_of().repeat(2, 1).repeat(2, 2)
    write(tmp_path, images=images)
    np.save(tmp_path / "labels.npy", answers(images_of()))
    more = (
        "--targets 0 3 --steps 5 --alpha 0.05 --images 15 --seed 9 --threads 1 --anew --resize 8 8 "
        f"--mean 0.5 0.4 0.3 --std 1 1 2 --layout NCHW --labels {tmp_path / 'labels.npy'}"
    )
    (tmp_path / "quick.toml").write_text("[neural_cleanse]\nbatch = 4\n")
    assert main(flags(tmp_path, *more.split())) in {0, 3, 4}
    found = json.loads((tmp_path / "scan" / "scan.json").read_text())
    options = found["reports"][0]["options"]
    assert (options["labels"], options["steps"], options["alpha"], options["batch"]) == ([0, 3], 5, 0.05, 4)
    assert (found["data"]["clean"], found["data"]["held"], found["seed"]) == (15, 15, 9)
    assert found["data"]["accuracy"] is not None


def test_a_folder_of_pictures_names_the_classes(tmp_path: Path) -> None:
    write(tmp_path)
    names = "abcdefghij"
    for row, (image, label) in enumerate(zip(images_of(40), answers(images_of(40)), strict=True)):
        (tmp_path / "pictures" / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pictures" / names[label] / f"{row}.png")
    for name in names:
        (tmp_path / "pictures" / name).mkdir(exist_ok=True)
        Image.fromarray(images_of(1)[0]).save(tmp_path / "pictures" / name / "extra.png")
    assert main(flags(tmp_path, data="pictures")) in {0, 3, 4}
    found = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert found["class_names"] == list(names)
    assert found["data"]["accuracy"] >= 0.8


def test_a_poisoned_training_set_is_looked_at_by_its_scanners(tmp_path: Path) -> None:
    write(tmp_path)
    train = images_of(200, seed=3)
    np.savez(tmp_path / "train.npz", images=train, labels=answers(train))
    (tmp_path / "quick.toml").write_text("[neural_cleanse]\nsteps = 4\nbatch = 4\n")
    more = ["--scanners", "spectral_signatures", "activation_clustering"]
    assert main([*flags(tmp_path), *more, "--training-set", str(tmp_path / "train.npz")]) in {0, 3, 4}
    found = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert [report["scanner"] for report in found["reports"]] == more[1:]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--scanners nope", "scanner 'nope': expected one of neural_cleanse, "),
        ("--scanners spectral_signatures", "spectral_signatures needs the training set; give one with"),
        ("--config gone.toml", "--config gone.toml cannot be read: "),
        ("--targets 0 33", "--targets 33: expected classes of the model, which has 10 (0 to 9)"),
        ("--alpha 2", "--alpha 2.0: expected a chance between 0 and 1"),
        ("--out pyproject.toml", "--out pyproject.toml is a file; expected a folder"),
        ("--workers 2", "--address and --workers are Ray's; add --executor ray"),
        ("--mean 0.5 0.5", "--mean has 2 values, expected 1 or 3, one for each channel"),
        ("--data gone.npz", "--data gone.npz is not there; expected an .npz"),
        ("--steps 0", "--steps 0: expected at least 1"),
    ],
)
def test_a_wrong_flag_is_named_in_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
) -> None:
    write(tmp_path)
    assert main([*flags(tmp_path), *extra.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize("suffix", ["pt", "pth", "pkl", "bin"])
def test_a_pickle_is_refused_unread(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    write(tmp_path)
    (tmp_path / f"m.{suffix}").write_bytes(pickle.dumps({"weights": 1}))
    assert main(flags(tmp_path, model=f"m.{suffix}")) == 2
    assert "is a pickle, and reading one runs whatever it holds" in capsys.readouterr().err


def test_a_pickle_that_calls_itself_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    (tmp_path / "model.onnx").write_bytes(pickle.dumps({"weights": 1}))
    assert main(flags(tmp_path)) == 2
    assert "is not an ONNX model" in capsys.readouterr().err


def test_breaking_off_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)

    def interrupted(*parts: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_result", interrupted)
    assert main(flags(tmp_path)) == 130
    assert capsys.readouterr().err == f"broken off; the same command goes on from {tmp_path}/scan/partial\n"


def test_what_others_left_is_not_said_to_be_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    (tmp_path / "scan" / "partial" / "fine_tuning-0123").mkdir(parents=True)

    def interrupted(*parts: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job.LocalExecutor, "run", interrupted)
    assert main(flags(tmp_path)) == 130
    assert capsys.readouterr().err == ""


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_declaring_the_flags_imports_nothing_heavy() -> None:
    code = """
import contextlib, io, json, sys
from guard.cli import main
for argv in (["--help"], ["scan", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(argv)
heavy = ("torch", "scipy", "matplotlib", "PIL", "tqdm", "onnxruntime", "ray")
loaded = [name for name in heavy if name in sys.modules]
print(json.dumps(["calibration.scan_command" in sys.modules, loaded]))
"""
    assert json.loads(run_python(code)) == [True, []]


INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started us may ignore it
from guard.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_the_command_is_broken_off_and_goes_on(tmp_path: Path) -> None:
    write(tmp_path)
    endless = ["--scanners", "neural_cleanse", "warp_inversion", "--config"]
    (tmp_path / "long.toml").write_text(QUICK + "[warp_inversion]\nsteps = 1000000\nbatch = 4\n")
    command = [sys.executable, "-c", INTERRUPTIBLE, *flags(tmp_path), *endless, str(tmp_path / "long.toml")]
    scan = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "scan" / "partial"
    while scan.poll() is None and not (partial.is_dir() and list(partial.glob("*.npz"))):
        with contextlib.suppress(subprocess.TimeoutExpired):
            scan.wait(0.2)
    scan.send_signal(signal.SIGINT)
    out, err = scan.communicate(timeout=120)
    assert (scan.returncode, out) == (130, "")
    assert err == f"broken off; the same command goes on from {partial}\n"
    kept = {path.name for path in partial.glob("*.npz")}
    guard = Path(sys.executable).with_name("guard")
    done = subprocess.run([guard, *flags(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode in {0, 3, 4}, done.stderr) == (True, "")
    assert done.stdout.split(":")[0] in {"CLEAN", "BACKDOORED", "INCONCLUSIVE"}
    assert kept <= {path.name for path in partial.glob("*.npz")}
