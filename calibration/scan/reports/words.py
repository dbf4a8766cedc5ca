"""The words and numbers that all reports share."""

from __future__ import annotations

from calibration.scan.base import Finding, ScanResult, Verdict
from calibration.wording import number, percentage, printable, seconds_text

__all__ = [
    "HEADLINES",
    "LIMITS",
    "finding_label",
    "label_text",
    "number",
    "percentage",
    "printable",
    "reasons_of",
    "seconds_text",
]

HEADLINES: dict[Verdict, str] = {
    "backdoored": "Backdoor found",
    "clean": "No backdoor found",
    "inconclusive": "Inconclusive",
}

LIMITS: tuple[str, ...] = (
    "A scan looks for the kinds of trigger that its scanners know. A clean verdict says that none of those "
    "was found with the images and the search effort recorded here; it does not prove that there is none.",
    "Not excluded: triggers that work only on images of one class where no pairs were searched, triggers "
    "that differ from image to image, triggers larger or subtler than the search allows, and backdoors that "
    "wait for several triggers at once.",
    "The verdict holds for the file with the digest given here. Training it further, quantising or "
    "converting it makes another model, which needs another scan.",
    "A scan needs clean images like those the model is used on. Poisoned, few or foreign images can hide a "
    "backdoor or feign one.",
    "A natural feature that the model relies on too much can look like a trigger. Look at the pictures of a "
    "finding before you act on it.",
)


def label_text(result: ScanResult, label: int) -> str:
    """Return ``3 cat``, or ``3`` where the class has no name."""
    names = result.class_names
    named = names is not None and 0 <= label < len(names)
    return f"{label} {printable(names[label])}" if named and names else str(label)


def finding_label(result: ScanResult, finding: Finding) -> str:
    """Return ``3 cat``, or ``1 dog → 3 cat`` for a pair."""
    target = label_text(result, finding.target)
    return target if finding.source is None else f"{label_text(result, finding.source)} → {target}"


def reasons_of(result: ScanResult) -> list[str]:
    """Return why the scan's verdict is what it is, each reason with the name of a scanner that shares it."""
    agreeing = [report for report in result.reports if report.verdict == result.verdict]
    return [f"{report.scanner}: {reason}" for report in agreeing for reason in report.reasons]
