"""From model and images to verdict and files; what is kept, and what is done again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import OptionError  # noqa: E402
from calibration.preprocessing import Transform  # noqa: E402
from calibration.scan import job  # noqa: E402
from calibration.scan.base import Arrays, Bench, Finding, Labelled, ScanReport, Unit, Verdict  # noqa: E402
from calibration.scan.executor import LocalExecutor  # noqa: E402
from calibration.scan.job import EXIT_CODES, combined, scan_model  # noqa: E402
from calibration.scan.table import SCANNERS  # noqa: E402
from calibration.trigger import load_trigger  # noqa: E402
from tests.calibration.backdoored_nets import CLASSES, TARGET, CornerNet, striped  # noqa: E402
from tests.calibration.scan_files import answers, images_of, options_for, write  # noqa: E402
from tests.tiny_models import linear_classifier  # noqa: E402

QUICK = {
    "size": 2, "betas": (0.5, 0.9), "steps": 12, "batch": 16, "crowd": 32, "width": 16, "chunk": 4,
    "samples": 4, "grid": 3, "grid_steps": 15, "judged": 60,
}  # fmt: skip
FILES = {"scan.html", "scan.json", "scan.sarif", "model_card.md", "triggers", "partial"}


@dataclasses.dataclass
class Work:
    """How many units were done, and after how many the user breaks off."""

    units: int = 0
    until: int = 10**9


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    done, run = Work(), LocalExecutor.run

    def counted(self: LocalExecutor, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        for place, arrays in run(self, units):
            if done.units == done.until:
                raise KeyboardInterrupt
            done.units += 1
            yield place, arrays

    monkeypatch.setattr(LocalExecutor, "run", counted)
    return done


def record(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "scan" / "scan.json").read_text())
    return read


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    reports = [{**report, "seconds": 0} for report in found["reports"]]
    return {**found, "seconds": 0, "started": "", "reports": reports}


def report(verdict: Verdict) -> ScanReport:
    return ScanReport("one", verdict, (), ())


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("clean", "clean"), "clean"),
        (("clean", "inconclusive"), "inconclusive"),
        (("inconclusive", "backdoored", "clean"), "backdoored"),
        ((), "inconclusive"),
    ],
)
def test_one_backdoor_is_enough_and_clean_takes_all(verdicts: tuple[Verdict, ...], expected: Verdict) -> None:
    assert combined([report(verdict) for verdict in verdicts]) == expected


def test_images_that_the_model_gets_wrong_prove_nothing_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert combined([report("clean")], doubtful=True) == "inconclusive"
    assert combined([report("backdoored")], doubtful=True) == "backdoored"
    scan = SCANNERS["neural_cleanse"].load().scan
    monkeypatch.setattr(
        SCANNERS["neural_cleanse"].load(),
        "scan",
        lambda *given, **named: dataclasses.replace(scan(*given, **named), verdict="clean"),
    )
    assert scan_model(options_for(tmp_path)).exit_code == 0
    scanned = scan_model(options_for(tmp_path, transform=Transform(mean=(3.0,))))
    assert scanned.exit_code == 4
    assert "no verdict of clean rests on it" in scanned.result.notes[0]
    assert record(tmp_path)["verdict"] == "inconclusive"


def test_every_verdict_has_an_exit_code_of_its_own_that_no_error_has() -> None:
    assert EXIT_CODES == {"clean": 0, "backdoored": 3, "inconclusive": 4}


def test_a_scan_leaves_its_reports_and_triggers_that_can_be_loaded(tmp_path: Path) -> None:
    scanned = scan_model(options_for(tmp_path))
    assert {path.name for path in (tmp_path / "scan").iterdir()} == FILES
    assert all(place.exists() for place in scanned.places)
    folders = list((tmp_path / "scan" / "triggers").iterdir())
    assert len(folders) == len(scanned.result.reports[0].triggers) > 0
    images = np.zeros((2, 3, 8, 8), np.float32)
    assert all(load_trigger(folder).stamp(images).shape == images.shape for folder in folders)


def test_the_record_says_what_was_scanned_with_what(tmp_path: Path) -> None:
    scanned = scan_model(options_for(tmp_path, seed=4, images=25))
    found = record(tmp_path)
    assert found["verdict"] == scanned.result.verdict
    assert found["executor"] == "local"
    assert (found["seed"], found["classes"]) == (4, 10)
    assert (found["data"]["clean"], found["data"]["held"], found["data"]["accuracy"]) == (25, 25, 1.0)
    assert len(json.dumps(found)) < 50_000


def test_the_same_scan_again_does_nothing_and_says_the_same(tmp_path: Path, work: Work) -> None:
    scan_model(options_for(tmp_path))
    first, done = record(tmp_path), work.units
    scan_model(options_for(tmp_path))
    assert work.units == done > 0
    assert without_times(record(tmp_path)) == without_times(first)


def test_a_scan_that_was_broken_off_goes_on_where_it_stopped(tmp_path: Path, work: Work) -> None:
    scanners = ("neural_cleanse", "warp_inversion", "wave_inversion")
    settings = {name: {"steps": 6, "batch": 4} for name in scanners}
    scan_model(options_for(tmp_path / "whole", scanners=scanners, settings=settings))
    whole, work.units = work.units, 0
    work.until = whole // 2
    with pytest.raises(KeyboardInterrupt):
        scan_model(options_for(tmp_path / "broken", scanners=scanners, settings=settings))
    assert not (tmp_path / "broken" / "scan" / "scan.json").exists()
    work.until = 10**9
    scan_model(options_for(tmp_path / "broken", scanners=scanners, settings=settings))
    assert work.units == whole
    one, other = (without_times(record(tmp_path / name))["reports"] for name in ("whole", "broken"))
    assert one == other


def test_another_scanner_is_added_to_what_was_done(tmp_path: Path, work: Work) -> None:
    scan_model(options_for(tmp_path))
    first = work.units
    settings = {
        "neural_cleanse": {"steps": 6, "batch": 4, "alpha": 0.01},
        "pair_scan": {"heats": [[2, 2, 4]]},
    }
    scan_model(options_for(tmp_path, scanners=("neural_cleanse", "pair_scan"), settings=settings))
    assert [report["scanner"] for report in record(tmp_path)["reports"]] == ["neural_cleanse", "pair_scan"]
    alone = work.units - first
    work.units = 0
    scan_model(options_for(tmp_path / "b", scanners=("pair_scan",), settings=settings))
    assert work.units == alone


def test_other_labels_or_a_half_written_result_are_not_taken_for_what_was_done(
    tmp_path: Path, work: Work
) -> None:
    scan_model(options_for(tmp_path))
    first, work.units = work.units, 0
    np.savez(tmp_path / "b.npz", images=images_of(), labels=(answers(images_of()) + 1) % 10)
    scan_model(options_for(tmp_path, data=tmp_path / "b.npz"))
    assert work.units >= first
    work.units = 0
    for kept in (tmp_path / "scan" / "partial").iterdir():
        os.truncate(kept, 40)
    scan_model(options_for(tmp_path))
    assert work.units == first


def test_all_is_done_again_where_that_is_asked(tmp_path: Path, work: Work) -> None:
    scan_model(options_for(tmp_path))
    first = work.units
    scan_model(options_for(tmp_path, anew=True))
    assert work.units == 2 * first


def test_triggers_of_an_earlier_scan_are_gone_and_other_files_stay(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    (options.out / "triggers" / "old").mkdir(parents=True)
    (options.out / "notes.txt").write_text("mine")
    scan_model(options)
    assert not (options.out / "triggers" / "old").exists()
    assert (options.out / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named_before_the_search(tmp_path: Path, work: Work) -> None:
    with pytest.raises(OptionError, match=r"--out /proc/nope cannot be made \(.*\); choose another"):
        scan_model(options_for(tmp_path, out=Path("/proc/nope")))
    assert work.units == 0


def test_two_classes_are_too_few_to_tell_and_the_verdict_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    np.savez(tmp_path / "two.npz", images=images_of(), labels=answers(images_of(), 2))
    model = linear_classifier(classes=2)
    scanned = scan_model(options_for(tmp_path, model, data=tmp_path / "two.npz"))
    assert (scanned.result.verdict, scanned.exit_code) == ("inconclusive", 4)
    assert "2 labels are too few to tell what is usual" in scanned.result.reports[0].reasons[0]


def test_only_labels_asked_about_can_be_flagged(tmp_path: Path) -> None:
    scanned = scan_model(options_for(tmp_path, targets=(0, 3)))
    assert {finding.target for finding in scanned.result.reports[0].flagged} <= {0, 3}


def test_a_model_without_images_is_scanned_with_images_made_from_it(tmp_path: Path) -> None:
    scan_model(options_for(tmp_path, data=None, made=20))
    found = record(tmp_path)
    assert found["data"]["source"] == "made from the model"
    assert found["data"]["accuracy"] is None
    assert found["notes"][0].startswith("no clean images were given: 40 were made from the model itself")


def test_threads_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(job.torch, "set_num_threads", asked.append)
    scan_model(options_for(tmp_path, threads=1))
    assert asked == [1]


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_a_cluster_finds_the_same_and_the_record_says_where(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    before = torch.get_num_threads()
    try:
        scan_model(options_for(tmp_path / "here", threads=1))
        scan_model(options_for(tmp_path / "there", executor="ray", workers=1))
    finally:
        torch.set_num_threads(before)
    here, there = (without_times(record(tmp_path / name)) for name in ("here", "there"))
    assert there["executor"] == "ray: 1 workers of 1 threads on a local cluster"
    assert there["reports"] == here["reports"]


def test_the_distribution_of_a_flagged_label_is_learned_and_written(tmp_path: Path) -> None:
    net = CornerNet(gain=40.0)
    images, labels = striped(80)
    part = Labelled(images, labels)
    bench = Bench(net, CLASSES, part, part, torch.zeros(1), torch.ones(1), digest="corner")
    options = options_for(tmp_path, settings={"trigger_distribution": QUICK})
    found = ScanReport("one", "backdoored", (), (Finding(TARGET, 1.0, flagged=True), Finding(0, 0.1)))
    learned = job._learn(options, bench, [found], LocalExecutor(bench))
    assert list(learned) == [f"distribution-{TARGET}"]
    stamped = learned[f"distribution-{TARGET}"].stamp(images, torch.Generator().manual_seed(0))
    assert (net(stamped).argmax(1) == TARGET).float().mean() > 0.9
    assert job._learn(options, bench, [report("clean")], LocalExecutor(bench)) == {}
