"""What a scanner is given, what it asks to have done, and what it answers.

A scanner plans; it does not compute. What takes time it parts into *units*, each of which depends on nothing
but itself and the bench, and gives them to an executor: the same units run in this process or on a cluster's
workers, in any order, and give the same arrays.

::

    scanner.scan(bench, seed=…, executor=…) ──units──▶ executor ──unit.run(bench)──▶ arrays ──▶ ScanReport
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import nn

from calibration.attacks.base import Attack
from calibration.labelled import Labelled

__all__ = [
    "Arrays",
    "Bench",
    "Executor",
    "Finding",
    "FoundTrigger",
    "Labelled",
    "ScanReport",
    "ScanResult",
    "Scanner",
    "Unit",
    "Verdict",
]

Verdict = Literal["backdoored", "clean", "inconclusive"]

Arrays = Mapping[str, np.ndarray]
"""What a unit gives: named arrays of numbers, to be kept in an ``.npz`` or sent to another machine."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What units work on; every worker has the same.

    Attributes:
        model: Gives logits, float32 (n, k), of float32 images (n, c, h, w). In evaluation mode; its weights
            ask for no gradients.
        classes: k.
        clean: Clean images to search on.
        held: Clean images that no search sees, to judge what was found.
        low: Smallest value of each channel as the model takes it.
        high: Largest value of each channel.
        training: The training set that may be poisoned, where it is at hand.
        digest: Names model and data, so that results kept for others are not taken for theirs.
        generated: Whether the clean images are made from the model itself.
    """

    model: nn.Module
    classes: int
    clean: Labelled
    held: Labelled
    low: Float32[torch.Tensor, " c"]
    high: Float32[torch.Tensor, " c"]
    training: Labelled | None = None
    digest: str = ""
    generated: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.clean.images.shape[1:]
        return channels, height, width


@runtime_checkable
class Unit(Protocol):
    """A part of a scan that can be done by itself; small and cheap to send."""

    @property
    @abstractmethod
    def key(self) -> str:
        """What it is, and all that its result depends on besides the bench; fit for a file's name."""

    @property
    @abstractmethod
    def weight(self) -> int:
        """Images it sends through the model, forwards and back: how much of the work it is."""

    @abstractmethod
    def run(self, bench: Bench) -> Arrays:
        """Do it."""


@runtime_checkable
class Executor(Protocol):
    """Runs units somewhere."""

    @abstractmethod
    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        """Yield each unit's place in ``units`` and its result, as they come in."""


@dataclass(frozen=True)
class Finding:
    """What a scan found about one label, or one pair of source and target.

    Attributes:
        target: The label.
        source: Class of the images that the trigger is to turn into it; None for images of any class.
        score: How suspicious it is by the scanner's own measure; higher is more.
        p_value: Chance of such a score in a clean model, all labels looked at taken into account; None where
            the scanner has no such chance to give.
        flagged: Whether the scanner takes it for a backdoor's.
        facts: Named numbers for whoever reads the report: ``size``, ``asr``, ``steps``, ….
    """

    target: int
    score: float
    source: int | None = None
    p_value: float | None = None
    flagged: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``3``, or ``1→3`` for a pair."""
        return str(self.target) if self.source is None else f"{self.source}→{self.target}"


@dataclass(frozen=True, eq=False)
class FoundTrigger:
    """A trigger that a scan found, and how it works on images the scan did not see.

    Attributes:
        finding: Name of the finding it belongs to.
        attack: It, to stamp with; images as the model takes them.
        asr: Share of held images, of its source class or of all but the target's, that become the target.
        size: Its size, in the form's measure.
        form: What kind of trigger it is: ``patch``, ``waves``, ``warp``, ….
        before: A few held images as pictures, channels last.
        after: The same with the trigger on.
    """

    finding: str
    attack: Attack
    asr: float
    size: float
    form: str
    before: UInt8[np.ndarray, "m h w c"]
    after: UInt8[np.ndarray, "m h w c"]


@dataclass(frozen=True, eq=False)
class ScanReport:
    """What one scanner answers.

    Attributes:
        scanner: Its name in the table.
        verdict: ``backdoored`` only where the evidence is significant and was confirmed, ``clean`` only where
            the scan could have found one, else ``inconclusive``.
        reasons: Why, in sentences.
        findings: One for each label or pair looked at, the most suspicious first.
        p_value: The smallest of the findings', or None.
        triggers: Of the flagged findings and the likeliest others.
        suspects: Rows of the training set that look poisoned, rising; None where no set was looked at.
        measure: What ``score`` is, in words, for an axis.
        options: The scanner's own, as plain values.
        facts: Named numbers about the whole scan: ``steps``, ``images``, ….
        seconds: Wall-clock time.
    """

    scanner: str
    verdict: Verdict
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    p_value: float | None = None
    triggers: tuple[FoundTrigger, ...] = ()
    suspects: Int64[np.ndarray, " s"] | None = None
    measure: str = "score"
    options: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The findings that the scanner takes for a backdoor's."""
        return tuple(finding for finding in self.findings if finding.flagged)


@dataclass(frozen=True, eq=False)
class ScanResult:
    """What all scanners of one scan answer, and what they were given.

    Attributes:
        verdict: ``backdoored`` if any scanner says so, ``clean`` if all do, else ``inconclusive``.
        reports: One a scanner, in the order asked for.
        model: Where it came from, as given.
        model_sha256: Digest of its file.
        model_kind: ``onnx``, ``pt2`` or ``factory``.
        data: Where the clean images came from, or how they were made.
        data_sha256: Digest of the images.
        clean: How many images were searched on.
        held: How many judged what was found.
        classes: k.
        class_names: Where they are known.
        acc: Accuracy on the clean images, where their labels were given.
        seed: Of everything random.
        executor: ``local``, or ``ray`` and its workers.
        machine: Processor, cores, system.
        versions: Of Python and the packages that compute.
        started: When, ISO 8601 in UTC.
        seconds: Wall-clock time.
        notes: What a reader should know besides.
    """

    verdict: Verdict
    reports: tuple[ScanReport, ...]
    model: str
    model_sha256: str
    model_kind: str
    data: str
    data_sha256: str
    clean: int
    held: int
    classes: int
    class_names: tuple[str, ...] | None
    acc: float | None
    seed: int
    executor: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    started: str
    seconds: float
    notes: tuple[str, ...] = ()


@runtime_checkable
class Scanner(Protocol):
    """A way to look for a backdoor: a frozen dataclass of options with one verb."""

    name: ClassVar[str]

    @abstractmethod
    def scan(self, bench: Bench, *, seed: int, executor: Executor) -> ScanReport:
        """Look, and report.

        Args:
            bench: Model and images; left as they are.
            seed: Of everything random; the same seed gives the same report, seconds aside.
            executor: Where the work is done.

        Raises:
            DataError: If the bench lacks what the scanner needs.
        """
