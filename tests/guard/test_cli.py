"""The command line: what it prints, what it returns, and that other packages cannot break it."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from guard import __version__, cli
from guard.artifact import MANIFEST_NAME, Manifest
from guard.artifact.manifest import sha256_of
from guard.errors import UnfitModelError
from tests import tiny_models
from tests.artifacts import write_tiny_artifact

FILES = ("model.onnx", "overlays.npy", "profile.json")


@dataclass
class Run:
    """What one call of ``guard`` returned and printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error."""
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").removesuffix("\n")


Guard = Callable[..., Run]


@pytest.fixture
def guard(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Run ``guard`` in this process, and put back what it does to the process."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    for name in os.environ:
        if name.startswith("GUARD_"):
            monkeypatch.delenv(name)

    def run(*argv: object) -> Run:
        try:
            code = cli.main([str(argument) for argument in argv])
        except SystemExit as end:
            code = int(end.code or 0)
        return Run(code, *capfd.readouterr())

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@dataclass
class Greet:
    """A command of another package."""

    name: str = "greet"
    help: str = "say a word"
    error: BaseException | None = None
    said: list[str] = field(default_factory=list)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--word", required=True)

    def run(self, arguments: argparse.Namespace) -> int:
        if self.error is not None:
            raise self.error
        self.said.append(arguments.word)
        return 7


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "guard.commands")


def offer(
    monkeypatch: pytest.MonkeyPatch,
    *commands: Greet,
    broken: tuple[EntryPoint, ...] = (),
    group: str = "guard.commands",
) -> None:
    """Install a package that offers these commands, and nothing else."""
    package = ModuleType("another_package")
    for command in commands:
        setattr(package, command.name, command)
    monkeypatch.setitem(sys.modules, "another_package", package)
    entries = (*(entry(command.name, f"another_package:{command.name}") for command in commands), *broken)
    asked = group
    monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == asked else ())


# The frame


def test_help_lists_every_command(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Greet())

    shown = guard("--help")

    assert (shown.code, shown.err) == (0, "")
    for line in ("serve", "verify", "greet", "say a word"):
        assert line in shown.out


@pytest.mark.parametrize("command", ["serve", "verify"])
def test_each_command_has_its_help(guard: Guard, command: str) -> None:
    shown = guard(command, "--help")

    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"usage: guard {command} ")


def test_the_version_is_the_packages(guard: Guard) -> None:
    assert guard("--version") == Run(0, f"guard {__version__}\n", "")


def test_an_unknown_command_is_told_the_known_ones(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch)

    refused = guard("nope")

    assert refused.code == 2
    assert refused.error.startswith(
        "argument COMMAND: invalid choice: 'nope' (choose from 'serve', 'verify', "
    )
    assert refused.error.endswith("); see `guard --help`")
    assert "'status', 'swap', 'rollback', 'canary', 'promote'" in refused.error


def test_no_command_is_an_error(guard: Guard) -> None:
    refused = guard()

    assert (refused.code, refused.error) == (
        2,
        "the following arguments are required: COMMAND; see `guard --help`",
    )


@pytest.mark.parametrize("flag", ["--bogus", "--pol", "--repo"])
def test_an_unknown_or_abbreviated_flag_is_an_error(guard: Guard, flag: str) -> None:
    refused = guard("serve", f"{flag}=flag")

    assert (refused.code, refused.error) == (
        2,
        f"unrecognized arguments: {flag}=flag; see `guard serve --help`",
    )


# Commands of other packages


def test_a_command_of_another_package_runs_and_gives_its_exit_code(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    greet = Greet()
    offer(monkeypatch, greet)

    assert guard("greet", "--word", "hello").code == 7
    assert greet.said == ["hello"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("another_package:gone", "AttributeError: module 'another_package' has no attribute 'gone'"),
        ("absent_package:it", "ModuleNotFoundError: No module named 'absent_package'"),
        ("raising_package:it", "RuntimeError: no such part"),
        ("ungrammatical_package:it", "SyntaxError: expected ':' (ungrammatical_package.py, line 1)"),
    ],
)
def test_a_broken_package_makes_only_its_own_command_unavailable(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, why: str
) -> None:
    (tmp_path / "raising_package.py").write_text("raise RuntimeError('no such part')")
    (tmp_path / "ungrammatical_package.py").write_text("def it()")
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, Greet(), broken=(entry("broken", value),))

    refused = guard("broken", "--model", "m.onnx", "-x", "--help")

    assert refused.code == 2
    assert refused.error == (
        f"command 'broken' comes from a package that cannot be loaded ({why}); repair or remove that package"
    )
    assert guard("greet", "--word", "hello").code == 7
    assert guard("verify", write_tiny_artifact(tmp_path)).code == 0
    assert "not available here; run it to see why" in guard("--help").out


@pytest.mark.parametrize(
    "own", [["serve", "--repository", "nope"], ["verify", "nope"], ["audit", "verify", "nope"]]
)
def test_our_own_commands_load_no_other_package(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, own: list[str]
) -> None:
    def looked(group: str) -> None:
        pytest.fail(f"entry points of {group} were read")

    monkeypatch.setattr(cli, "entry_points", looked)

    assert guard(*own).code == 2


def test_another_package_adds_to_what_is_audited(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = entry("broken", "nowhere_at_all:BROKEN")
    offer(monkeypatch, Greet(), Greet("verify"), broken=(broken,), group="guard.audit")

    assert guard("audit", "greet", "--word", "hello").code == 7
    assert guard("audit", "verify", "nope").code == 2
    assert "command 'broken' comes from a package that cannot be loaded" in guard("audit", "broken").error
    shown = guard("audit", "--help").out
    for line in ("greet", "say a word", "verify", "hold a log against its own chain"):
        assert line in shown
    assert "invalid choice: 'nope'" in guard("audit", "nope").error


def test_another_package_cannot_take_the_name_of_our_command(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, Greet("serve"), Greet("verify"))

    assert "say a word" not in guard("--help").out
    assert guard("verify", "nope").error.startswith("nope is not a directory")


def test_an_error_of_the_guard_is_one_line_and_exit_2(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Greet(error=UnfitModelError("the model is no model")))

    refused = guard("greet", "--word", "hello")

    assert (refused.code, refused.error) == (2, "the model is no model")


def test_a_machine_without_onnx_runtime_is_told_what_to_install(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    offer(monkeypatch, Greet(error=absent))

    refused = guard("greet", "--word", "hello")

    assert (refused.code, refused.error) == (
        2,
        "ONNX Runtime is not installed; install inference-guard[cpu], or [gpu] for CUDA",
    )


def test_a_defect_is_not_dressed_up_as_a_users_error(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Greet(error=ModuleNotFoundError("x", name="x")))

    with pytest.raises(ModuleNotFoundError):
        guard("greet", "--word", "hello")


def test_an_interrupt_ends_with_130_and_no_traceback(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Greet(error=KeyboardInterrupt()))

    assert guard("greet", "--word", "hello") == Run(130, "", "")


# guard verify


def test_verify_says_what_the_artifact_is(guard: Guard, tmp_path: Path) -> None:
    directory = write_tiny_artifact(tmp_path, boundary_bits=0.25, blend="convex")

    run = guard("verify", directory)

    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines() == [
        f"{directory}: ok",
        f"  model     tiny, SHA-256 {sha256_of((directory / 'model.onnx').read_bytes())}",
        f"  artifact  SHA-256 {sha256_of((directory / MANIFEST_NAME).read_bytes())}",
        "  check     strip, convex, N = 8",
        "  probe     none: written by an older guard; calibrate again to have one",
        "  boundary  0.2500 bits, false rejections 1.0000% certified",
    ]


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Replace a file and list it in the manifest, as one would who means harm."""
    (directory / name).write_bytes(data)
    list_again(directory, {file: (directory / file).read_bytes() for file in FILES})


def list_again(directory: Path, files: dict[str, bytes]) -> None:
    (directory / MANIFEST_NAME).write_bytes(Manifest.of(files).to_json())


def lose_a_file(directory: Path) -> None:
    (directory / "overlays.npy").unlink()


def lose_the_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()


def change_a_byte(directory: Path) -> None:
    data = bytearray((directory / "model.onnx").read_bytes())
    data[-1] ^= 1
    (directory / "model.onnx").write_bytes(data)


def list_a_file_outside(directory: Path) -> None:
    files = {file: (directory / file).read_bytes() for file in FILES}
    list_again(directory, {**files, "../../secret": b""})


def pickle_the_overlays(directory: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"run": "me"}], object), allow_pickle=True)
    rewrite(directory, "overlays.npy", buffer.getvalue())


def take_another_model(directory: Path) -> None:
    rewrite(directory, "model.onnx", tiny_models.linear_classifier(seed=5).SerializeToString())


def break_the_profile(directory: Path) -> None:
    profile = json.loads((directory / "profile.json").read_text())
    profile["check"]["blend"] = "multiply"
    rewrite(directory, "profile.json", json.dumps(profile).encode())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lose_a_file, "overlays.npy is missing; restore it or run `guard calibrate` again"),
        (lose_the_manifest, "manifest.json is missing; restore it or run `guard calibrate` again"),
        (change_a_byte, "model.onnx: expected SHA-256 "),
        (list_a_file_outside, "'../../secret'"),
        (pickle_the_overlays, "pickled Python objects, which can run code"),
        (take_another_model, "profile.json was measured on another model"),
        (break_the_profile, "profile.json: check.blend: Input should be 'add', "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_verify_refuses_a_damaged_artifact_in_one_line(
    guard: Guard, tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    directory = write_tiny_artifact(tmp_path)
    damage(directory)

    run = guard("verify", directory)

    assert run.code == 2
    assert expected in run.error


def test_verify_refuses_a_model_that_cannot_be_served(guard: Guard, tmp_path: Path) -> None:
    run = guard("verify", write_tiny_artifact(tmp_path, model=tiny_models.batch_coupled_classifier()))

    assert run.code == 2
    assert run.error.startswith("the model answers an image differently in another batch")


def test_verify_of_nothing_says_what_was_expected(guard: Guard, tmp_path: Path) -> None:
    run = guard("verify", tmp_path / "nope")

    assert (run.code, run.error) == (
        2,
        f"{tmp_path}/nope is not a directory; expected an artifact with manifest.json",
    )


def test_a_path_that_the_system_refuses_is_one_line(guard: Guard) -> None:
    run = guard("verify", "x" * 300)

    assert (run.code, "File name too long" in run.error) == (2, True)


# guard serve, where it cannot


def test_serve_without_a_repository_says_the_ways_to_give_it(guard: Guard) -> None:
    run = guard("serve")

    assert (run.code, run.error) == (
        2,
        "setting 'repository' is missing; give --repository, GUARD_REPOSITORY, or repository in the TOML "
        "file",
    )


def test_serve_of_a_repository_that_is_not_there(guard: Guard, tmp_path: Path) -> None:
    run = guard("serve", "--repository", tmp_path / "nope", "--metrics-port", "0")

    assert run.code == 2
    assert run.error.startswith(f"model repository {tmp_path}/nope is not a directory; ")


def test_serve_of_a_damaged_artifact(guard: Guard, tmp_path: Path) -> None:
    change_a_byte(write_tiny_artifact(tmp_path))

    run = guard("serve", "--repository", tmp_path, "--host", "127.0.0.1", "--port", 0, "--metrics-port", 0)

    record, error = run.err.splitlines()
    assert (run.code, json.loads(record)["version"]) == (2, "1")
    assert error.startswith(f"error: {tmp_path}/tiny/1/model.onnx: expected SHA-256 ")


def test_serve_with_settings_for_a_model_that_is_not_there(guard: Guard, tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path / "models")
    config = tmp_path / "guard.toml"
    config.write_text("host = '127.0.0.1'\nport = 0\nmetrics_port = 0\n[models.cats]\npolicy = 'flag'")

    run = guard("serve", "--config", config, "--repository", tmp_path / "models")

    assert (run.code, run.error) == (
        2,
        f"settings name the model 'cats', which is not in {tmp_path}/models; there are ['tiny']",
    )


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--port", "80x", "setting 'port': Input should be a valid integer, "),
        ("--policy", "off", "setting 'policy': Input should be 'enforce', 'flag' or 'monitor', got 'off'"),
        ("--config", "nope.toml", "settings file nope.toml is not there; "),
        ("--host", "nope.invalid", "cannot listen on port 8001 of nope.invalid (setting 'port': "),
    ],
)
def test_serve_with_a_wrong_flag(guard: Guard, tmp_path: Path, flag: str, value: str, expected: str) -> None:
    run = guard("serve", "--repository", tmp_path, "--metrics-port", 0, flag, value)

    assert run.code == 2
    assert run.error.startswith(expected)


def test_the_log_of_grpc_is_off_unless_the_operator_wants_it(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for before, after in ((None, "NONE"), ("debug", "debug")):
        if before is None:
            monkeypatch.delenv("GRPC_VERBOSITY")
        else:
            monkeypatch.setenv("GRPC_VERBOSITY", before)
        guard("serve", "--repository", tmp_path / "nope")
        assert os.environ["GRPC_VERBOSITY"] == after


def test_who_reads_no_further_is_no_error(tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "guard.cli", "verify", str(tmp_path / "tiny" / "1")],
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")
