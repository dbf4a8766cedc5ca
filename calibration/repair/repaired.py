"""What a repair did, and what every report says of it in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from calibration.evaluation.fallen import Fallen, fallen_note
from calibration.evaluation.measuring import Measured
from calibration.evaluation.numbers import Agreement
from calibration.repair.base import RepairResult, StageRecord
from calibration.repair.options import MODEL, RepairOptions
from calibration.repair.workbench import Laid
from calibration.wording import command_line, percentage, printable, seconds_text

__all__ = ["MUCH_LOST", "Repaired", "images_per_second", "next_commands", "sentence", "supplied"]

MUCH_LOST = 0.05
"""Accuracy that a repair may lose without a word."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """What was done, and what it did.

    Attributes:
        options: What was asked for.
        laid: What it was done to, and with.
        result: What the repair answers.
        sha256: Digest of the repaired file.
        before: What the model did on the held images; None where there are none.
        after: What it does now.
        agreement: Between the two.
        fallen: Classes whose accuracy fell by more than chance.
        device: Where it was trained.
        machine: What kind of machine.
        versions: Of Python and the packages that compute.
        started: When, ISO 8601 in UTC.
        seconds: Wall-clock time of this sitting.
    """

    options: RepairOptions
    laid: Laid
    result: RepairResult
    sha256: str
    before: Measured | None
    after: Measured | None
    agreement: Agreement | None
    fallen: tuple[Fallen, ...]
    device: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    started: str
    seconds: float

    @property
    def lost(self) -> float:
        """Accuracy that it cost on the held images, as a share; 0 where that is not known."""
        before, after = self.before, self.after
        if before is None or after is None or before.acc is None or after.acc is None:
            return 0.0
        return before.acc.value - after.acc.value

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        notes = [*self.laid.notes, *self.result.notes]
        if self.after is not None and self.laid.known and "trigger" in self.options.entry.needs:
            notes.append(
                "the triggers below are those that the repair was given; rates of others may be higher"
            )
        if self.lost > MUCH_LOST:
            notes.append(
                f"accuracy fell by {100 * self.lost:.1f} points on the held images; try more images, a lower "
                f"rate (--explain {self.options.method}), or another repair (--list)"
            )
        if self.fallen and self.laid.images is not None:
            notes.append(fallen_note(self.fallen, self.laid.images.class_names))
        if self.after is None:
            notes.append("no images were held back, so nothing was measured; use guard evaluate")
        return tuple(notes)


def images_per_second(stage: StageRecord) -> float | None:
    """Return how fast a stage was; None of one that counted no images, or took no time."""
    return stage.images / stage.seconds if stage.images and stage.seconds else None


def sentence(repaired: Repaired) -> str:
    """Return what was done and what it cost."""
    options = repaired.options
    done = (
        f"Repaired {printable(options.model)} by {options.method} in {seconds_text(repaired.result.seconds)}"
    )
    before, after = repaired.before, repaired.after
    if before is None or after is None or before.acc is None or after.acc is None:
        return f"{done}."
    held = len(repaired.laid.supplies.held)
    return (
        f"{done}: accuracy on {held:,} held images {percentage(before.acc.value)} before, "
        f"{percentage(after.acc.value)} after."
    )


def supplied(repaired: Repaired) -> Iterator[str]:
    """Yield what it was done with."""
    laid, options = repaired.laid, repaired.options
    if laid.images is not None:
        labels = "with labels" if laid.supplies.labelled else "without labels"
        yield (
            f"{len(laid.supplies.train):,} clean images {labels} to learn from, {len(laid.supplies.held):,} "
            f"held back"
        )
        flip = "mirrored and " if laid.supplies.augmentation.flip else "not mirrored, "
        yield (
            f"training images were {flip}shifted by up to {laid.supplies.augmentation.padding} pixels "
            f"({laid.mirror})"
        )
    if laid.workable.norms:
        yield f"batch norm was put back after {laid.workable.norms} convolutions to learn, and folded again"
    if laid.known:
        yield f"triggers: {', '.join(printable(each.name) for each in laid.known)}"
    if laid.supplies.distributions:
        yield f"distributions of triggers for labels {', '.join(map(str, laid.supplies.distributions))}"
    yield f"seed {options.seed}, on {repaired.device}"


def next_commands(repaired: Repaired) -> Iterator[str]:
    """Yield commands that can be pasted into a shell; words in capitals are the reader's to fill in."""
    options = repaired.options
    made = options.out / MODEL
    layout = ["--layout", options.layout] if options.layout else []
    alike = [*options.transform.words(), *layout]
    weights = ["--original-weights", options.weights] if options.weights else []
    shape = ["--input", *options.input_shape] if options.input_shape else []
    original = ["--original", options.model, *weights, *shape]
    yield command_line("guard", "evaluate", made, *original, "--data", "TEST_IMAGES", *alike)
    labels = ["--labels", options.labels] if options.labels else []
    data = ["--data", options.data or "CLEAN_IMAGES", *labels]
    out = ["--out", "REPOSITORY/NAME"]
    yield command_line("guard", "calibrate", "--model", made, *data, *out, *alike)
