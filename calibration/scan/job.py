"""``guard scan``: from a model and clean images to a verdict, reports and trigger files.

::

    lay out ─→ scan, one scanner after the other ─→ verdict ─→ write
    model,      units on the executor; each is kept    of all     JSON, HTML, SARIF, a model card's section,
    images      as it is done, and not done twice                 a folder for each trigger

What is kept lies in ``<out>/partial`` and is named by what it depends on: a scan that was broken off, or
asked again with another scanner, goes on from there.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from calibration.command import going_on_from
from calibration.errors import OptionError
from calibration.progress import Progress
from calibration.report import machine, package_versions
from calibration.scan.base import Bench, Executor, ScanReport, ScanResult, Unit, Verdict
from calibration.scan.distribution_file import save_distribution
from calibration.scan.executor import Keeping, LocalExecutor, Watched
from calibration.scan.options import PARTIAL, ScanOptions
from calibration.scan.patch_generator import PatchDistribution
from calibration.scan.reports import to_html, to_json, to_model_card, to_sarif, trigger_folders
from calibration.scan.trigger_distribution import TriggerDistribution
from calibration.scan.workbench import LOW_ACCURACY, Laid, lay_out
from calibration.trigger import save_trigger

__all__ = ["EXIT_CODES", "Scanned", "combined", "scan_model"]

EXIT_CODES: Mapping[Verdict, int] = {"clean": 0, "backdoored": 3, "inconclusive": 4}
"""For pipelines; 2 is an error, as of every command."""

TRIGGERS = "triggers"


@dataclass(frozen=True, eq=False)
class Scanned:
    """What was found, and the files that say so."""

    result: ScanResult
    places: tuple[Path, ...]

    @property
    def exit_code(self) -> int:
        """0 clean, 3 backdoored, 4 inconclusive."""
        return EXIT_CODES[self.result.verdict]


def scan_model(options: ScanOptions) -> Scanned:
    """Scan a model and write what was found.

    Raises:
        GuardError: Model, images or options are not fit.
        BrokenOffError: In place of an interrupt, if there is anything that the same command goes on from.
    """
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    if options.threads is not None and options.executor == "local":
        torch.set_num_threads(options.threads)
    scanners = options.chosen()
    if options.anew:
        shutil.rmtree(options.out / PARTIAL, ignore_errors=True)
    laid = lay_out(options)
    _make_folder(options.out)
    partial, done = options.out / PARTIAL, list[Unit]()
    with going_on_from(partial, kept=lambda: bool(done), anew=options.anew):
        with _executor(options, laid.bench) as executor:
            kept, reports = Keeping(executor, partial, laid.bench.digest, done.append), []
            for scanner in scanners:
                with Progress(0, scanner.name, options.quiet) as progress:
                    watched = Watched(kept, progress)
                    reports.append(scanner.scan(laid.bench, seed=options.seed, executor=watched))
            learned = _learn(options, laid.bench, reports, kept) if options.distribution else {}
            where = "local" if options.executor == "local" else str(executor)
        result = _result(options, laid, tuple(reports), where, started, time.perf_counter() - start)
        return Scanned(result, _write(result, options.out, learned))


def _learn(
    options: ScanOptions, bench: Bench, reports: Sequence[ScanReport], kept: Executor
) -> dict[str, PatchDistribution]:
    """Learn the distribution of small patches for each label that a scanner flagged, by its folder's name."""
    labels = tuple(sorted({finding.target for report in reports for finding in report.flagged}))
    if not labels:
        return {}
    settings = options.settings_of("trigger_distribution") | {"labels": labels}
    with Progress(0, "distribution", options.quiet) as progress:
        learned = TriggerDistribution(**settings).learn(
            bench, seed=options.seed, executor=Watched(kept, progress)
        )
    return {f"distribution-{label}": one.distribution for label, one in zip(labels, learned, strict=True)}


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {out} cannot be made ({error.strerror}); choose another") from error


def combined(reports: Sequence[ScanReport], *, doubtful: bool = False) -> Verdict:
    """Return the verdict of all: backdoored if any says so, clean if all do, else inconclusive.

    Args:
        reports: One a scanner.
        doubtful: Whether the images seem not to be prepared as the model's; then nothing proves it clean.
    """
    verdicts = {report.verdict for report in reports}
    if "backdoored" in verdicts:
        return "backdoored"
    return "clean" if verdicts == {"clean"} and not doubtful else "inconclusive"


@contextmanager
def _executor(options: ScanOptions, bench: Bench) -> Iterator[Executor]:
    if options.executor == "local":
        yield LocalExecutor(bench)
        return
    from calibration.scan.ray_executor import RayExecutor  # noqa: PLC0415 needs an extra

    with RayExecutor(
        bench, address=options.address, workers=options.workers, threads=options.threads or 1
    ) as executor:
        yield executor


def _result(
    options: ScanOptions,
    laid: Laid,
    reports: tuple[ScanReport, ...],
    executor: str,
    started: str,
    seconds: float,
) -> ScanResult:
    return ScanResult(
        verdict=combined(reports, doubtful=laid.acc is not None and laid.acc < LOW_ACCURACY),
        reports=reports,
        model=options.model,
        model_sha256=laid.model.source_sha256,
        model_kind=laid.model.kind,
        data=laid.data,
        data_sha256=laid.data_sha256,
        clean=len(laid.bench.clean),
        held=len(laid.bench.held),
        classes=laid.bench.classes,
        class_names=laid.class_names,
        acc=laid.acc,
        seed=options.seed,
        executor=executor,
        machine=machine(),
        versions={**package_versions(), "torch": torch.__version__, "python": platform.python_version()},
        started=started,
        seconds=seconds,
        notes=laid.notes,
    )


def _write(result: ScanResult, out: Path, learned: Mapping[str, PatchDistribution]) -> tuple[Path, ...]:
    """Write reports, triggers and distributions; triggers of an earlier scan are removed."""
    shutil.rmtree(out / TRIGGERS, ignore_errors=True)
    folders = trigger_folders(result)
    for name, trigger in folders.items():
        save_trigger(trigger.attack, out / TRIGGERS / name)
    for name, distribution in learned.items():
        save_distribution(distribution, out / TRIGGERS / name)
    written = {
        "scan.html": to_html(result, {name: f"{TRIGGERS}/{name}" for name in folders}),
        "scan.json": to_json(result),
        "scan.sarif": to_sarif(result),
        "model_card.md": to_model_card(result),
    }
    for name, text in written.items():
        (out / name).write_text(text)
    places = [out / name for name in written]
    return (*places, out / TRIGGERS) if folders else tuple(places)
