"""``guard heal``: from a backdoored model to its next version, or to the gate that forbids it.

::

    part ─→ scan ─→ repair ─→ judge ─→ … the next repair, until one passes ─→ publish
    three     triggers  exported,  by what there is,                             calibrate with images that
    disjoint  if any    parity     never by the true                             nothing learned from, write
    parts               checked    trigger                                       the next version whole

Each step is kept in ``<out>/steps`` and named by all that it depends on (:mod:`calibration.heal.steps`): the
same command goes on where it stopped. Nothing is in the repository before the last step, which writes all of
it at once.
"""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.data import ImageSet, digest_of
from calibration.errors import OptionError
from calibration.heal.ancestry import require_unlearned
from calibration.heal.attempts import Trial
from calibration.heal.evidence import Evidence, Quarantined, weigh_suspects
from calibration.heal.healed import Attempt, Healed, Looked
from calibration.heal.judging import Bar
from calibration.heal.looking import look
from calibration.heal.methods import cost_of, lacking, named
from calibration.heal.options import HealOptions
from calibration.heal.parts import CALIBRATE, JUDGE, LEARN, part_images, write_images
from calibration.heal.places import only_here, write_text
from calibration.heal.publishing import is_there, made_from, publish, published_as
from calibration.heal.record import lineage_of
from calibration.heal.report import write_reports
from calibration.heal.steps import Done, Planned, Steps
from calibration.heal.subject import read_clean, read_subject
from calibration.repair.table import Need
from calibration.report import machine, package_versions

__all__ = ["STEPS", "heal"]

STEPS = "steps"
_WORK = "work.json"


def heal(options: HealOptions) -> Healed:
    """Heal a model, publish what passes the gates, and write the reports.

    Raises:
        GuardError: Model, images or options are not fit, or no repair could be tried. Nothing is published
            then, and what was done is kept.
    """
    with only_here(options.out):
        if options.anew:
            shutil.rmtree(options.out / STEPS, ignore_errors=True)
        return _Job(options).run()


class _Job:
    """One sitting: what was read, and the steps."""

    def __init__(self, options: HealOptions) -> None:
        self.options, self.work = options, _work_of(options.out)
        model = Path(options.model)
        self.subject = read_subject(options, made_from(model, self.work) if model.is_dir() else ())
        self.images, self.transform = read_clean(self.subject, options, options.data, options.labels)
        self.subject.check.calibration(
            self.subject.file, options.data, self.subject, self.transform, options
        )  # refuses now what could not be published at the end
        self.steps = Steps(options.out / STEPS, self._plan(), self._say)
        self.notes = list(self.images.notes)

    def run(self) -> Healed:
        """Do the steps, and write the reports."""
        start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        part = self._part()
        scan, looked = look(self.steps, part, self.subject, self.transform, self.options, self._common())
        quarantined = self._weigh(part)
        attempts: tuple[Attempt, ...] = ()
        known = bool(looked.targets or self.options.triggers or quarantined)
        if known or self.options.even_if_clean:
            attempts = self._attempts(part, scan, looked, quarantined)
        passed = [attempt for attempt in attempts if attempt.passed]
        chosen = min(passed, key=lambda one: one.judgement.harm if one.judgement else 0.0, default=None)
        healed = Healed(
            options=self.options,
            subject=self.subject,
            parts=part.result["counts"],
            data_sha256=self.images.digest,
            looked=looked,
            attempts=attempts,
            chosen=chosen,
            suspects=_described(quarantined),
            artifact=None,
            artifact_sha256=None,
            frr=None,
            rows=(),
            notes=tuple(self.notes),
            machine=machine(),
            versions={**package_versions(), "torch": torch.__version__, "python": platform.python_version()},
            started=started,
            seconds=0.0,
        )
        if chosen is not None:
            healed = self._publish(healed, chosen, part)
        healed = replace(healed, rows=self.steps.table(), seconds=time.perf_counter() - start)
        write_reports(healed)
        return healed

    def _say(self, line: str) -> None:
        if not self.options.quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def _plan(self) -> tuple[Planned, ...]:
        options, count = self.options, len(self.images)
        labels = self.subject.signature.classes or 10
        looking = labels * 300 * 16 * 1.1
        judging = looking * options.rescan + 2 * options.judge_share * count
        plan = [
            Planned("part", 0.0, "part the clean images in three"),
            Planned("scan", looking, f"look for a backdoor with {' or '.join(options.scanners)}"),
        ]
        for place, method in enumerate(named(options)):
            likely = options.try_all or not place
            learning = cost_of(method, options, round(count / 2))
            plan.append(Planned(f"repair-{method}", learning, f"repair by {method}", likely))
            plan.append(Planned(f"judge-{method}", judging, f"judge what {method} made", likely))
        passes = options.calibrate_share * count * self.subject.check.overlays / 3
        return (*plan, Planned("publish", passes, f"calibrate and write into {self.subject.publish}"))

    def _common(self) -> dict[str, Any]:
        """Return what every result on the model depends on."""
        return {
            "model": self.subject.sha256,
            "transform": asdict(self.transform),
            "layout": self.subject.layout,
            "seed": self.options.seed,
            "guard": package_versions()["inference-guard"],
        }

    def _part(self) -> Done:
        options, check = self.options, self.subject.check
        test = None
        if options.test_data is not None:
            test, _ = read_clean(self.subject, options, options.test_data, options.test_labels)
        parts = part_images(
            self.images,
            check,
            calibrate_share=options.calibrate_share,
            judge_share=0.0 if test else options.judge_share,
            seed=options.seed,
            where=f"--data {options.data}",
            apart=test,
        )
        if self.subject.profile is not None:
            self.notes += require_unlearned(parts.calibrate, self.images, self.subject.file.parent)
        if parts.copies:
            self.notes.append(
                f"{parts.copies} images equal others, and were left out of those to repair with"
            )
        rows = {LEARN: parts.learn, JUDGE: parts.judge, CALIBRATE: parts.calibrate}
        sets = {name: (self.images, chosen) for name, chosen in rows.items()}
        if test is not None:
            sets[JUDGE] = test, np.arange(len(test), dtype=np.int64)
        counts = {Path(name).stem: len(chosen) for name, (_, chosen) in sets.items()}

        def write(folder: Path, key: str) -> dict[str, Any]:
            del key
            for name, (images, chosen) in sets.items():
                write_images(images, chosen, folder / name)
            return {"counts": {**counts, "copies": parts.copies}}

        inputs = {
            "images": [_digest(self.images), None if test is None else _digest(test)],
            "resize": [self.transform.resize, self.transform.crop],
            "rows": [digest_of(one) for one in rows.values()],
        }
        return self.steps.do("part", inputs, write)

    def _weigh(self, part: Done) -> Quarantined | None:
        clean, _ = read_clean(self.subject, self.options, part.folder / JUDGE, None)
        quarantined = weigh_suspects(self.subject, clean, self.transform, self.options)
        if quarantined is not None:
            self.notes += quarantined.notes
        return quarantined

    def _attempts(
        self, part: Done, scan: Done, looked: Looked, quarantined: Quarantined | None
    ) -> tuple[Attempt, ...]:
        """Try repairs in order, until one passes."""
        evidence = Evidence(
            scan.folder if looked.targets else None,
            looked.scanners,
            looked.anomaly_index,
            looked.p_value,
            quarantined,
        )
        bar = Bar(self.subject, part.folder / JUDGE, self.transform, evidence, self.options)
        depends = {**self._common(), "part": part.key, "scan": evidence.scan and scan.key}
        trial, there = Trial(bar, part, depends, self.steps), self._there(looked)
        attempts: list[Attempt] = []
        for method in named(self.options):
            why_not = lacking(method, there)
            attempt = Attempt(method, why_not) if why_not else trial.attempt(method)
            attempts.append(attempt)
            for reason in (attempt.why_not, *(attempt.judgement.failures if attempt.judgement else ())):
                if reason:
                    self._say(f"  {method}: {reason}")
            if attempt.passed and not self.options.try_all:
                break
        if all(attempt.judgement is None for attempt in attempts):
            reasons = "; ".join(attempt.why_not for attempt in attempts)
            raise OptionError(f"no repair could be made: {reasons}; choose others with --method")
        return tuple(attempts)

    def _there(self, looked: Looked) -> set[Need]:
        there: set[Need] = {"images"}
        if self.images.labels is not None:
            there.add("labels")
        if looked.targets or self.options.triggers:
            there.add("trigger")
        if looked.targets and self.options.distribution:
            there.add("distribution")
        return there

    def _publish(self, healed: Healed, chosen: Attempt, part: Done) -> Healed:
        check, options = self.subject.check, self.options
        assert chosen.model is not None
        calibration = check.calibration(
            chosen.model, part.folder / CALIBRATE, self.subject, self.transform, options
        )

        def write(folder: Path, key: str) -> dict[str, Any]:
            del folder
            before = None if options.anew else published_as(self.subject.publish, key)
            return before or publish(calibration, lineage_of(healed, chosen, key, self.work))

        inputs = {
            **self._common(),
            "part": part.key,
            "repaired": chosen.sha256,
            "check": asdict(check),
            "publish": str(self.subject.publish.resolve()),
        }
        done = self.steps.do("publish", inputs, write, holds=is_there).result
        return replace(
            healed, artifact=Path(done["artifact"]), artifact_sha256=done["sha256"], frr=done["frr"]
        )


def _work_of(out: Path) -> str:
    """Return the name of a work folder, drawn once: versions that it made are known by it."""
    try:
        work = json.loads((out / _WORK).read_text())["work"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        work = None
    if not isinstance(work, str):
        work = secrets.token_hex(8)
        write_text(out / _WORK, json.dumps({"work": work}) + "\n")
    return work


def _described(quarantined: Quarantined | None) -> dict[str, Any] | None:
    if quarantined is None:
        return None
    suspects = quarantined.suspects
    return {"inputs": len(suspects), "sha256": suspects.digest, "label": quarantined.label}


def _digest(images: ImageSet) -> list[str | None]:
    return [images.digest, None if images.labels is None else digest_of(images.labels)]
