"""What ``guard repair`` may be asked to do, and how each option is held against its repair."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")

from calibration.errors import OptionError  # noqa: E402
from calibration.repair.explain import explain_method, list_methods  # noqa: E402
from calibration.repair.options import RepairOptions  # noqa: E402
from calibration.repair.settings import hints_of, options_in_file, options_in_words, spelled  # noqa: E402
from calibration.repair.table import DEFAULT_METHOD, REPAIRS  # noqa: E402

METHOD = "fine_tuning"


def options(folder: Path, **changes: Any) -> RepairOptions:
    given = {"model": "model.onnx", "out": folder / "out", "method": METHOD, "data": folder / "d.npz"}
    return RepairOptions(**{**given, **changes})


def test_options_are_read_as_toml_and_typed_by_the_repair() -> None:
    words = ["epochs=3", "rate = 1e-3", "precision=float32"]
    assert options_in_words(words, METHOD) == {"epochs": 3, "rate": 1e-3, "precision": "float32"}
    assert options_in_words(['precision="float32"', "rate=1"], METHOD) == {"precision": "float32", "rate": 1}
    assert isinstance(options_in_words(["rate=1"], METHOD)["rate"], float)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epochs=abc"], "--set epochs=abc: fine_tuning's epochs is a whole number, got 'abc'; see guard"),
        (["epochs=2.5"], "fine_tuning's epochs is a whole number, got 2.5"),
        (["epochs=true"], "fine_tuning's epochs is a whole number, got True"),
        (["rate=nan"], "fine_tuning's rate is a number, got nan"),
        (["rate=[1, 2]"], r"fine_tuning's rate is a number, got \(1, 2\)"),
        (["precision=half"], "fine_tuning's precision is 'bfloat16' or 'float32', got 'half'"),
        (["epoch=2"], "--set epoch=2: fine_tuning has no option 'epoch'; expected one of epochs, batch"),
        (["epochs"], "--set epochs: expected name=value, such as epochs=10"),
        (["=2"], "--set =2: expected name=value"),
        (["epochs=2", "epochs=3"], "--set epochs=3: epochs was given before; give it once"),
        (["epochs=1\nrate = 2"], "fine_tuning's epochs is a whole number"),
    ],
)
def test_a_word_that_is_no_option_is_refused_with_what_is_expected(words: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options_in_words(words, METHOD)


def test_a_file_holds_a_table_for_each_repair_and_only_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[fine_tuning]\nepochs = 9\n[distillation]\nepochs = 2\n")
    assert options_in_file(tmp_path / "c.toml", METHOD) == {"epochs": 9}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "'epochs' is no table of a repair's; expected tables such as"),
        ("[fine_tunning]\nepochs = 3", "'fine_tunning' is no table of a repair's"),
        ("[fine_tuning]\nepochs = '3'", r"\[fine_tuning\] epochs: fine_tuning's epochs is a whole number"),
        ("[fine_tuning", "c.toml cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(OptionError, match=message):
        options_in_file(tmp_path / "c.toml", METHOD)


def test_types_are_told_in_words() -> None:
    assert spelled(bool) == "true or false"
    assert spelled(tuple[int, ...] | None) == "[a whole number, ...] or none"
    assert spelled(Literal["a", "b"] | float) == "'a' or 'b' or a number"


@pytest.mark.parametrize("method", REPAIRS)
def test_every_option_of_every_repair_is_explained_and_its_default_can_be_given(method: str) -> None:
    said = explain_method(method, columns=100)
    lines = said.splitlines()
    for name in hints_of(method):
        place = next(row for row, line in enumerate(lines) if line.startswith(f"  {name} = "))
        default = lines[place].partition(" = ")[2].partition("    (")[0]
        assert lines[place + 1].startswith("      "), f"{name} is not explained"
        given = options_in_words([f"{name}={default}"], method)
        assert REPAIRS[method].make(**given) == REPAIRS[method].make()
    assert "References:" in said
    assert said.startswith(f"{method}: ")


def test_every_repair_is_listed_with_what_it_needs_and_one_as_the_default() -> None:
    said = list_methods(columns=100)
    assert [name for name in REPAIRS if f"  {name} " not in said] == []
    assert said.count("(default)") == 1
    assert DEFAULT_METHOD in REPAIRS
    assert all(len(line) <= 100 for line in said.splitlines())


def test_a_method_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--method nope: expected one of fine_tuning, "):
        options(tmp_path, method="nope")
    with pytest.raises(OptionError, match="--method nope: expected one of fine_tuning, "):
        explain_method("nope")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "fine_tuning needs clean images; give them with --data"),
        ({"data": None, "labels": Path("l.npy")}, "--labels l.npy was given without --data"),
        ({"training_labels": Path("l.npy")}, "--training-labels l.npy was given without --training-set"),
        ({"held": 1.0}, "--held 1.0: expected a share from 0 up to but not 1"),
        ({"held": -0.1}, "--held -0.1: expected a share"),
        ({"padding": -1}, "--padding -1: expected 0 pixels or more"),
        ({"threads": 0}, "--threads 0: expected at least 1"),
        ({"seed": -1}, "--seed -1: expected a whole number from 0"),
        ({"settings": {"rate": -1.0}}, "fine_tuning: rate: .*; see guard repair --explain fine_tuning"),
        ({"method": "unlearning"}, "unlearning needs a trigger; give the folder of a guard scan with --scan"),
        ({"method": "gdm"}, "gdm needs a distribution of triggers; run guard scan --distribution"),
        ({"out": Path("pyproject.toml")}, "--out pyproject.toml is a file; expected a folder"),
        ({"model": "m/model.onnx", "out": Path("m")}, "--out m would overwrite m/model.onnx; choose another"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if changes.get("method", METHOD) not in REPAIRS:
        pytest.skip("not in the table")
    with pytest.raises(OptionError, match=message):
        options(tmp_path, **changes)


def test_options_reach_the_repair(tmp_path: Path) -> None:
    made = options(tmp_path, settings={"epochs": 3, "rate": 0.5}).make()
    assert (vars(made)["epochs"], vars(made)["rate"]) == (3, 0.5)


def test_brackets_without_end_are_refused_as_other_text_is(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="rate is a number"):
        options_in_words(["rate=" + "[" * 5000], "fine_tuning")
    (tmp_path / "deep.toml").write_text("[fine_tuning]\nrate = " + "[" * 5000)
    with pytest.raises(OptionError, match="cannot be read"):
        options_in_file(tmp_path / "deep.toml", "fine_tuning")
