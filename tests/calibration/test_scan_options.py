"""What ``guard scan`` may be asked to do, and how each scanner hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from calibration.errors import OptionError  # noqa: E402
from calibration.scan.options import ScanOptions, read_settings  # noqa: E402
from calibration.scan.table import SCANNERS  # noqa: E402

USUAL = [name for name, entry in SCANNERS.items() if entry.usual and entry.needs == "images"]
OF_TRAINING_SETS = [name for name, entry in SCANNERS.items() if entry.needs == "training set"]


def options(folder: Path, **changes: Any) -> ScanOptions:
    return ScanOptions("model.onnx", folder / "scan", **changes)


def names(asked: ScanOptions) -> list[str]:
    return [scanner.name for scanner in asked.chosen()]


def test_without_a_choice_the_usual_scanners_run_that_have_what_they_need(tmp_path: Path) -> None:
    assert names(options(tmp_path)) == USUAL
    with_set = options(tmp_path, training_set=tmp_path / "train.npz")
    assert names(with_set) == [*USUAL, *OF_TRAINING_SETS]


def test_scanners_run_in_the_order_asked_for_and_once(tmp_path: Path) -> None:
    asked = ("warp_inversion", "neural_cleanse", "warp_inversion")
    assert names(options(tmp_path, scanners=asked)) == ["warp_inversion", "neural_cleanse"]


def test_the_chance_is_shared_by_the_scanners_that_give_one(tmp_path: Path) -> None:
    asked = options(tmp_path, alpha=0.01, scanners=("neural_cleanse", "pair_scan", "warp_inversion"))
    given = {scanner.name: getattr(scanner, "alpha", None) for scanner in asked.chosen()}
    assert given == {"neural_cleanse": 0.005, "pair_scan": None, "warp_inversion": 0.005}


def test_no_chance_is_divided_by_none(tmp_path: Path) -> None:
    assert names(options(tmp_path, scanners=("pair_scan",))) == ["pair_scan"]


def test_an_option_that_only_shares_a_flags_name_is_left_alone(tmp_path: Path) -> None:
    own = SCANNERS["trigger_distribution"].make()
    asked = options(tmp_path, scanners=("trigger_distribution",), alpha=0.2, steps=7)
    (made,) = asked.chosen()
    assert made == own


def test_targets_are_each_looked_at_once_and_never_taken_for_sources(tmp_path: Path) -> None:
    asked = options(tmp_path, scanners=("neural_cleanse", "pair_scan"), targets=(3, 0, 3))
    assert [vars(scanner)["labels"] for scanner in asked.chosen()] == [(3, 0), None]


def test_settings_win_over_flags_and_lists_become_tuples(tmp_path: Path) -> None:
    settings = {"neural_cleanse": {"steps": 9, "labels": [1, 2]}, "pair_scan": {"heats": [[4, 5, 6]]}}
    asked = options(
        tmp_path, scanners=("neural_cleanse", "pair_scan"), steps=50, targets=(5,), settings=settings
    )
    cleanse, pairs = map(vars, asked.chosen())
    assert (cleanse["steps"], cleanse["labels"]) == (9, (1, 2))
    assert pairs["heats"] == ((4, 5, 6),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "--alpha 0.0: expected a chance between 0 and 1"),
        ({"images": 0}, "--images 0: expected at least 1"),
        ({"made": -1}, "--made -1: expected at least 1"),
        ({"threads": 0}, "--threads 0: expected at least 1"),
        ({"steps": 0}, "--steps 0: expected at least 1"),
        ({"seed": -1}, "--seed -1: expected a whole number from 0"),
        ({"targets": (0, -2)}, "--targets -2: expected class indices from 0"),
        ({"workers": 2}, "--address and --workers are Ray's; add --executor ray"),
        ({"address": "auto"}, "--address and --workers are Ray's; add --executor ray"),
        ({"scanners": ("nope",)}, "scanner 'nope': expected one of neural_cleanse, "),
        ({"settings": {"nope": {}}}, "scanner 'nope': expected one of neural_cleanse, "),
        ({"labels": Path("l.npy")}, "--labels l.npy was given without --data"),
        ({"training_labels": Path("l.npy")}, "--training-labels l.npy was given without --training-set"),
        ({"scanners": ("spectral_signatures",)}, "spectral_signatures needs the training set; give one with"),
        ({"settings": {"neural_cleanse": {"stepz": 1}}}, "neural_cleanse: stepz: expected options among "),
        ({"settings": {"neural_cleanse": {"steps": 0}}}, "neural_cleanse: steps: expected 1 or more, got 0"),
    ],
)
def test_a_wrong_option_is_named_before_any_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as said:
        options(tmp_path, **changes)
    assert str(said.value).startswith(message)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan").touch()
    with pytest.raises(OptionError, match="is a file; expected a folder"):
        options(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OptionError, match=f"cannot be written: no permission in {tmp_path}"):
        options(tmp_path)


def test_settings_are_a_table_for_each_scanner(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[neural_cleanse]\nsteps = 9\n")
    assert read_settings(tmp_path / "c.toml") == {"neural_cleanse": {"steps": 9}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 9", "steps stands alone; expected tables such as"),
        ("[neural", "cannot be read"),
        (None, "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "c.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OptionError, match=message):
        read_settings(tmp_path / "c.toml")


def test_a_training_set_that_no_scanner_looks_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"train.npz was given, but none of neural_cleanse looks at it"):
        options(tmp_path, training_set=tmp_path / "train.npz", scanners=("neural_cleanse",))
