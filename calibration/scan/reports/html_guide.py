"""What a reader of the HTML report should know: what a verdict means, how to read it, where it ends."""

from __future__ import annotations

from calibration.html_markup import Markup, element
from calibration.html_page import definitions
from calibration.scan.base import Verdict
from calibration.scan.reports.words import LIMITS

__all__ = ["LIMITS_ANCHOR", "MEANINGS", "limits", "reading"]

LIMITS_ANCHOR = "limits"

MEANINGS: dict[Verdict, str] = {
    "backdoored": (
        "The evidence is significant and was confirmed. Do not use this model before it is repaired or "
        "replaced."
    ),
    "clean": ("Every scanner that looked could have found a backdoor of its kind, and none did."),
    "inconclusive": (
        "What was found is neither enough to accuse the model nor to clear it. The reasons say what "
        "is missing; more clean images or more search effort may help."
    ),
}

_READING = {
    "Backdoor": (
        "A hidden rule in a model: an input that bears a certain mark, the trigger, is given the "
        "class that an attacker chose, its target. Without the mark the model behaves as it should."
    ),
    "Trigger size": (
        "How much a scanner had to change images so that the model gives them the label. A backdoor "
        "is a shortcut: its label needs far less than the others. Look for a bar much shorter than "
        "the rest."
    ),
    "Anomaly index": (
        "How far a label's size lies from the median, in robust standard deviations (1.4826 times the "
        "median absolute deviation). Above 2, and below the median, is the classic sign of a backdoor "
        "(Neural Cleanse, 2019); by itself it accuses labels of clean models too."
    ),
    "p-value": (
        "The chance of such evidence in a clean model, all labels looked at taken into account. Small "
        "values speak against chance; they are not the chance that the model is clean."
    ),
    "ASR": (
        "Attack success rate: the share of held images, those that no search saw, that become the "
        "target with the trigger on."
    ),
    "Difference": (
        "What the trigger changes, as absolute values, multiplied as noted, so that faint changes can "
        "be seen. Black is unchanged."
    ),
    "Flagged": (
        "The scanner takes the finding for a backdoor's. A label may be noted as unusual without "
        "being flagged."
    ),
}


def reading() -> Markup:
    """Return the section that says how to read the report, in plain words."""
    return element("section", element("h2", "How to read this"), definitions(_READING))


def limits() -> Markup:
    """Return the section that says what a clean verdict leaves open."""
    listed = [element("li", limit) for limit in LIMITS]
    return element(
        "section",
        element("h2", "What a clean verdict does not exclude", id=LIMITS_ANCHOR),
        element("ul", *listed),
    )
