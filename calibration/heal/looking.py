"""The scan of the original model, as a step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from calibration.heal.healed import Looked
from calibration.heal.judging import scan_numbers
from calibration.heal.options import HealOptions
from calibration.heal.parts import LEARN
from calibration.heal.steps import Done, Steps
from calibration.heal.subject import Subject
from calibration.preprocessing import Transform
from calibration.scan.base import ScanResult
from calibration.scan.job import scan_model
from calibration.scan.options import ScanOptions

__all__ = ["look"]


def look(
    steps: Steps,
    part: Done,
    subject: Subject,
    transform: Transform,
    options: HealOptions,
    depends: Mapping[str, Any],
) -> tuple[Done, Looked]:
    """Scan the original with the images that a repair may learn from.

    Args:
        steps: Of the job.
        part: The step that parted the images.
        subject: The original.
        transform: Preprocessing of the images.
        options: Of the job.
        depends: All that every result on the model depends on.

    Raises:
        GuardError: Model, images or options are not fit for a scan.
    """
    scan = ScanOptions(
        model=str(subject.file),
        out=options.out,
        data=part.folder / LEARN,
        scanners=options.scanners,
        settings=options.scan,
        images=options.images,
        transform=transform,
        layout=subject.layout,
        seed=options.seed,
        threads=options.threads,
        distribution=options.distribution,
        quiet=options.quiet,
    )
    inputs = {
        **depends,
        "part": part.key,
        "scanners": [[one.name, _plain(asdict(one))] for one in scan.chosen()],  # type: ignore[call-overload]
        "images": options.images,
        "distribution": options.distribution and _plain(scan.settings_of("trigger_distribution")),
    }

    def run(folder: Path, key: str) -> dict[str, Any]:
        del key
        return asdict(_found(replace(scan, out=folder)))

    done = steps.do("scan", inputs, run)
    lists = {name: tuple(done.result[name]) for name in ("targets", "reasons", "scanners")}
    return done, Looked(**{**done.result, **lists})


def _found(scan: ScanOptions) -> Looked:
    """Scan with one scanner after the other until one finds a backdoor; all of them share alpha.

    The folder holds the report of the last; where none finds a backdoor, but one flags a label, that one's.
    """
    assert scan.scanners is not None
    scans = [replace(scan, scanners=(name,), alpha=scan.alpha / len(scan.scanners)) for name in scan.scanners]
    results: list[ScanResult] = []
    for one in scans:
        results.append(scan_model(one).result)
        if results[-1].verdict == "backdoored":
            return _looked(results[-1:])
    flagging = [row for row, result in enumerate(results) if any(one.flagged for one in result.reports)]
    if flagging and flagging[-1] != len(scans) - 1:
        scan_model(scans[flagging[-1]])  # from what is kept of it, so that its triggers are what is found
    return _looked(results)


def _looked(results: Sequence[ScanResult]) -> Looked:
    verdicts = {result.verdict for result in results}
    reports = [report for result in results for report in result.reports]
    numbers = [scan_numbers(result) for result in results]
    return Looked(
        verdict=verdicts.pop() if len(verdicts) == 1 else "inconclusive",
        targets=tuple(sorted({one.target for report in reports for one in report.flagged})),
        reasons=tuple(reason for report in reports for reason in report.reasons),
        scanners=tuple(report.scanner for report in reports),
        anomaly_index=max((index for index, _ in numbers if index is not None), default=None),
        p_value=min((chance for _, chance in numbers if chance is not None), default=None),
        acc=results[0].acc,
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))
