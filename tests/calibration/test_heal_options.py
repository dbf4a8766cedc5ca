"""What is asked of a healing: by flags, by a file, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from calibration.errors import OptionError  # noqa: E402
from calibration.heal.methods import AUTO_ORDER, cost_of, lacking, named  # noqa: E402
from calibration.heal.options import heal_options  # noqa: E402
from guard.cli import main  # noqa: E402

GIVEN: dict[str, Any] = {"model": "repository/m", "data": "clean.npz", "out": "work"}

TOML = """
[heal]
model = "repository/m"
data = "clean.npz"
out = "work"
method = ["nad", "unlearning"]
mean = [0.5]
try_all = true
[gates]
max_suspects_kept = 0
[scan.neural_cleanse]
steps = 100
[repair.unlearning]
epochs = 3
rate = 1
"""


def written(folder: Path, text: str = TOML) -> Path:
    path = folder / "heal.toml"
    path.write_text(text)
    return path


def test_a_file_says_all_and_flags_win_over_it(tmp_path: Path) -> None:
    options = heal_options({}, written(tmp_path))
    assert (options.model, options.data, options.out) == ("repository/m", Path("clean.npz"), Path("work"))
    assert (options.method, options.try_all) == (("nad", "unlearning"), True)
    assert options.transform.mean == (0.5,)
    assert options.gates.max_suspects_kept == 0
    assert options.repair["unlearning"] == {"epochs": 3, "rate": 1.0}
    over = heal_options({"method": "argd", "gates": {"max_inverted_asr": 0.3}}, written(tmp_path))
    assert over.method == ("argd",)
    assert (over.gates.max_suspects_kept, over.gates.max_inverted_asr) == (0, 0.3)


def test_auto_tries_the_cheapest_first_and_only_what_has_what_it_needs() -> None:
    assert named(heal_options(GIVEN)) == AUTO_ORDER
    assert AUTO_ORDER[:2] == ("unlearning", "guided_unlearning")
    assert [name for name in AUTO_ORDER if not lacking(name, {"images"})] == ["guided_unlearning"]
    assert [name for name in AUTO_ORDER if not lacking(name, {"images", "labels", "trigger"})] == [
        "unlearning", "guided_unlearning", "nad", "argd",
    ]  # fmt: skip
    assert lacking("gdm", {"images"}) == "gdm needs labels and a distribution"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"method": "auto,nad"}, "expected auto alone"),
        ({"method": "nothing"}, "--method nothing: expected one of"),
        ({"method": "anti_backdoor_learning"}, "expected repairs that work on clean images"),
        ({"scanners": ("spectral_signatures",)}, "one that looks at clean images"),
        ({"required": ("max_speed",)}, "--require max_speed: expected a gate"),
        ({"judge_share": 0.8}, "together: expected less than 1"),
        ({"seed": -1}, "--seed -1"),
        ({"test_labels": "l.npy"}, "without --test-data"),
        ({"gates": {"max_inverted_asr": 7.0}}, "gate max_inverted_asr = 7.0"),
        ({"blend": "multiply"}, "blend: .*got 'multiply'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        heal_options({**GIVEN, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[heal]\nspeed = 3\n", r"\[heal\] has no option 'speed'"),
        ("[gates]\nmax_speed = 3\n", "there is no gate 'max_speed'"),
        ("[repair.unlearning]\nspeed = 3\n", r"\[repair.unlearning\] speed: unlearning has no option"),
        ("[repair.nothing]\n", r"\[repair.nothing\] is no repair's"),
        ("[scan.nothing]\n", r"\[scan.nothing\] is no scanner's"),
        ("[scan.warp_inversion]\nspeed = 3\n", r"\[scan.warp_inversion\] has no option 'speed'"),
        ("[gates]\nmax_inverted_asr = true\n", "gate max_inverted_asr = True: expected a number"),
        ("[heal]\nseed = 'one'\n", "seed: .*got 'one'"),
        ("model = 3\n", "'model' is no table of this file"),
        ("[heal\n", "cannot be read"),
    ],
)
def test_a_file_that_says_what_there_is_not_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        heal_options(GIVEN, written(tmp_path, text))


def test_an_option_of_a_repair_out_of_its_range_is_refused_before_anything_is_read() -> None:
    options = heal_options({**GIVEN, "repair": {"unlearning": {"epochs": 0}}})
    with pytest.raises(OptionError, match=r"unlearning: epochs: .*guard repair --explain unlearning"):
        cost_of("unlearning", options, 100)
    assert cost_of("guided_unlearning", options, 100) > cost_of("nad", options, 100)


def test_a_command_without_a_model_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heal", "--data", "clean.npz", "--out", "work"]) == 2
    assert "model is missing: give guard heal MODEL" in capsys.readouterr().err
