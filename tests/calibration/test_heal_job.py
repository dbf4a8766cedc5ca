"""``guard heal`` from end to end: what it publishes and what not, what it goes on from, what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import OptionError  # noqa: E402
from calibration.heal import attempts, job, publishing  # noqa: E402
from calibration.heal.healed import Attempt, Healed  # noqa: E402
from calibration.heal.job import heal  # noqa: E402
from calibration.heal.record import lineage_of  # noqa: E402
from calibration.heal.report import to_markdown, to_text  # noqa: E402
from guard.artifact import read_artifact  # noqa: E402
from guard.cli import main  # noqa: E402
from tests.calibration.backdoored_nets import TARGET  # noqa: E402
from tests.calibration.heal_files import (  # noqa: E402
    SCAN,
    STRONG,
    WEAK,
    answers,
    clean,
    cornered,
    options_for,
    suspects,
    write,
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backdoored artifact, its model and clean images; to be copied."""
    folder = tmp_path_factory.mktemp("subject")
    write(folder)
    return folder


@pytest.fixture
def folder(subject: Path, tmp_path: Path) -> Path:
    """The same, for one test alone."""
    return Path(shutil.copytree(subject, tmp_path / "subject"))


@pytest.fixture(scope="module")
def healed(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Healed]:
    """A folder in which the artifact was healed, with suspects."""
    folder = Path(shutil.copytree(subject, tmp_path_factory.mktemp("healed") / "subject"))
    return folder, heal(options_for(folder, suspects=suspects(folder / "suspects.npz")))


def states(done: Healed) -> dict[str, str]:
    return {row.name: row.state for row in done.rows}


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "repository" / "corner").iterdir())


def measured(done: Healed, gate: str) -> Any:
    assert done.attempts[0].judgement is not None
    return next(one for one in done.attempts[0].judgement.results if one.name == gate)


def test_the_next_version_obeys_the_true_trigger_no_more(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    assert (done.ending, done.exit_code) == ("published", 0)
    assert done.artifact == (folder / "repository" / "corner" / "2").resolve()
    images, labels = clean(200, seed=5)
    others = labels != TARGET
    old, new = (folder / "repository" / "corner" / name for name in ("1", "2"))
    assert (answers(old, cornered(images[others])) == TARGET).mean() == 1.0
    assert (answers(new, cornered(images[others])) == TARGET).mean() <= 0.05
    assert (answers(new, images) == labels).mean() >= 0.85


def test_the_next_version_is_checked_as_the_last_one_was(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    old, new = (read_artifact(folder / "repository" / "corner" / name) for name in ("1", "2"))
    assert new.profile.check == old.profile.check
    assert new.profile.check.blend == "half_clip"
    assert (new.profile.input, new.profile.preprocessing) == (old.profile.input, old.profile.preprocessing)
    assert (new.profile.boundary.frr, new.profile.boundary.confidence) == (0.1, 0.9)
    assert new.profile.model_name == "corner"
    assert new.profile.calibration.seed is None
    assert done.artifact_sha256 == new.digest


def test_what_calibrates_was_neither_learned_from_nor_judged_by(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    parts: dict[str, set[bytes]] = {}
    for name in ("learn", "judge", "calibrate"):
        with np.load(folder / "work" / "steps" / "01-part" / f"{name}.npz") as stored:
            parts[name] = {image.tobytes() for image in stored["images"]}
            assert len(stored["images"]) == len(stored["labels"]) == done.parts[name]
    assert not parts["learn"] & parts["judge"]
    assert not (parts["learn"] | parts["judge"]) & parts["calibrate"]
    overlays = read_artifact(folder / "repository" / "corner" / "2").overlays
    assert {overlay.tobytes() for overlay in overlays} <= parts["calibrate"]


def test_a_version_says_where_it_came_from(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    old, new = (folder / "repository" / "corner" / name for name in ("1", "2"))
    lineage = json.loads((new / "heal.json").read_text())
    assert "heal.json" in json.loads((new / "manifest.json").read_text())["files"]
    assert lineage["original"] == {
        "model_sha256": read_artifact(old).profile.model_sha256,
        "artifact_sha256": read_artifact(old).digest,
        "version": "1",
        "name": "corner",
    }
    assert lineage["sha256"] == read_artifact(new).profile.model_sha256
    assert (lineage["method"], lineage["options"]["rate"], lineage["seed"]) == ("unlearning", 0.003, 0)
    assert lineage["gates"]["max_accuracy_drop"]["limit"] == 0.15
    assert lineage["gates"]["max_inverted_asr"]["verdict"] == "passed"
    assert lineage["gates"]["max_distribution_asr"]["verdict"] == "not measured"
    assert lineage["scan"]["targets"] == [TARGET]
    assert "torch" in lineage["versions"]
    assert str(folder) not in (new / "heal.json").read_text()
    failed = Attempt("nad", f"--scan {folder / 'work' / 'steps' / '02-scan'} holds no trigger")
    noted = replace(done, notes=(f"--data {folder / 'clean.npz'}: odd",), attempts=(failed, *done.attempts))
    assert done.chosen is not None
    told = lineage_of(noted, done.chosen, "key", "work")
    assert (told["notes"], told["tried"]["nad"]) == (
        ["--data clean.npz: odd"],
        "--scan work/steps/02-scan holds no trigger",
    )


def test_suspects_are_counted_and_what_they_are_led_to_is_found(healed: tuple[Path, Healed]) -> None:
    _, done = healed
    assert done.suspects is not None
    assert (done.suspects["inputs"], done.suspects["label"]) == (30, TARGET)
    kept = measured(done, "max_suspects_kept").measure
    assert kept.before == 1.0
    assert kept.note == f"{round(kept.value * 30)} of 30 suspects led to label {TARGET}"
    assert kept.value <= 0.2  # every fifth of them is of that class


def test_the_reports_name_every_gate_with_its_number(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    work = folder / "work"
    assert done.artifact is not None
    texts = [
        to_text(done),
        to_markdown(done),
        (work / "heal.html").read_text(),
        (work / "heal.json").read_text(),
    ]
    for text in texts:
        for name in ("max_accuracy_drop", "max_suspects_kept", "max_distribution_asr", "not measured"):
            assert name in text
    for text in texts[:3]:
        assert f"guard swap {done.artifact.parent.name} --version 2" in " ".join(text.split())
    assert "<script" not in texts[2]
    assert json.loads(texts[3])["published"]["method"] == "unlearning"
    assert work.stat().st_mode & 0o077 == 0  # the images that overlays are drawn from lie there


def test_the_same_command_again_does_nothing_and_publishes_nothing_more(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    again = heal(options_for(folder, suspects=folder / "suspects.npz"))
    assert set(states(again).values()) == {"resumed"}
    assert again.artifact == done.artifact
    assert versions(folder) == ["1", "2"]


def test_what_a_version_learned_from_does_not_calibrate_the_next_one(healed: tuple[Path, Healed]) -> None:
    folder, done = healed
    later = {"model": str(done.artifact), "publish": folder / "third" / "corner", "out": folder / "later"}
    with pytest.raises(OptionError, match=r"learned from \d+ of the 75 images .*; give --seed 0"):
        heal(options_for(folder, **later, seed=1))
    assert heal(options_for(folder, **later)).ending == "nothing found"


def test_a_gate_that_fails_is_named_and_nothing_is_published(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "heal.toml"
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in WEAK.items())
    config.write_text(
        f'[heal]\nmethod = "unlearning"\nimages = 60\nquiet = true\ndevice = "cpu"\nthreads = 1\n'
        f"[gates]\nmax_anomaly_index = 99\n[scan.neural_cleanse]\nsteps = 150\n"
        f"[repair.unlearning]\n{settings}\n"
    )
    model, data, out = folder / "repository" / "corner" / "1", folder / "clean.npz", folder / "work"
    command = ["heal", str(model), "--data", str(data), "--out", str(out), "--config", str(config)]
    assert main(command) == 5
    printed = " ".join(capsys.readouterr().out.split())
    assert "Not healed" in printed
    assert "gate min_rescan_p_value: " in printed
    assert "expected at least 0.01 (neural_cleanse on the repaired model: backdoored)" in printed
    assert "gate max_anomaly_index" not in printed  # the file says 99
    assert versions(folder) == ["1"]
    record = json.loads((out / "heal.json").read_text())
    assert (record["ending"], record["published"]) == ("gates failed", None)
    assert record["attempts"][0]["gates"]["max_inverted_asr"]["verdict"] == "passed"  # it graded itself
    assert main([*command, "--min-rescan-p-value", "0", "--publish", str(folder / "other" / "corner")]) == 0
    assert (folder / "other" / "corner" / "1" / "heal.json").is_file()
    assert (versions(folder), (out / "heal.html").read_text().count("resumed")) == (["1"], 4)


def break_off(folder: Path, monkeypatch: pytest.MonkeyPatch, where: ModuleType, name: str) -> None:
    """Heal until something would be called that breaks the job off; publishing is done before."""

    def interrupt(*given: Any) -> None:
        if where is job:
            publishing.publish(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            heal(options_for(folder))


def test_a_job_that_was_broken_off_goes_on_with_the_step_it_was_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(folder, monkeypatch, attempts, "measure_repair")
    break_off(folder, monkeypatch, publishing, "calibrate")
    assert versions(folder) == ["1"]
    break_off(folder, monkeypatch, job, "publish")
    assert versions(folder) == ["1", "2"]  # killed after it was written, before that was noted
    done = heal(options_for(folder))
    assert states(done) == {
        "part": "resumed",
        "scan": "resumed",
        "repair-unlearning": "resumed",
        "judge-unlearning": "resumed",
        "publish": "done",
    }
    assert versions(folder) == ["1", "2"]
    repaired = folder / "work" / "steps" / "03-repair-unlearning" / "model.onnx"
    whole = repaired.read_bytes()
    repaired.write_bytes(whole[:-1])  # someone touched it
    again = heal(options_for(folder))
    assert [states(again)[name] for name in ("scan", "repair-unlearning")] == ["resumed", "done"]
    assert repaired.read_bytes() == whole
    longer = heal(options_for(folder, method=("guided_unlearning", "unlearning"), repair={
        "guided_unlearning": {"epochs": 1, "search_steps": 1, "precision": "float32", "rate": 1e-9},
        "unlearning": STRONG,
    }))  # fmt: skip
    assert [states(longer)[f"{what}-unlearning"] for what in ("repair", "judge")] == ["resumed", "resumed"]
    assert [attempt.passed for attempt in longer.attempts] == [False, True]
    assert versions(folder) == ["1", "2"]


def test_a_changed_model_is_scanned_and_repaired_anew(folder: Path) -> None:
    options = options_for(
        folder, model=str(folder / "model.onnx"), publish=folder / "repository" / "corner", rescan=False,
        overlays=4, frr=0.1, confidence=0.9, gates={"max_accuracy_drop": 1, "min_agreement": 0},
    )  # fmt: skip
    first = heal(options)
    write(folder / "weaker", gain=30.0)
    shutil.copy(folder / "weaker" / "model.onnx", folder / "model.onnx")
    second = heal(options)
    assert states(first)["part"] == "done"
    assert states(second) == {**states(first), "part": "resumed"}
    assert first.subject.sha256 != second.subject.sha256
    assert versions(folder) == ["1", "2", "3"]
    assert measured(second, "max_anomaly_index").verdict == "not measured"


def test_a_model_without_a_backdoor_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, gain=0.0)
    done = heal(options_for(tmp_path))
    assert (done.ending, done.looked.verdict, done.exit_code) == ("nothing found", "clean", 0)
    assert versions(tmp_path) == ["1"]
    assert "Nothing to heal" in to_text(done)
    with pytest.raises(OptionError, match="no repair could be made: unlearning needs a trigger"):
        heal(options_for(tmp_path, even_if_clean=True))
    assert versions(tmp_path) == ["1"]


def test_scanners_look_one_after_the_other_until_one_finds_something(folder: Path) -> None:
    quick = {"warp_inversion": {"steps": 20, "batch": 16}, "wave_inversion": {"steps": 20, "batch": 16}}
    asked = ("warp_inversion", "neural_cleanse", "wave_inversion")
    done = heal(options_for(folder, scanners=asked, scan={**SCAN, **quick}, rescan=False))
    assert (done.looked.verdict, done.looked.scanners) == ("backdoored", ("neural_cleanse",))
    reports = {path.parent.name for path in (folder / "work" / "steps").rglob("*") if path.is_file()}
    assert not any("wave_inversion" in name for name in reports)


def test_another_job_in_the_same_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*given: object, **named: object) -> None:
        heal(options_for(folder))

    monkeypatch.setattr(job, "look", second)
    with pytest.raises(OptionError, match="another guard heal works in it"):
        heal(options_for(folder))
