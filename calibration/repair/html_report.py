"""A repair's result as one page that stands alone: no scripts, nothing fetched, charts inside."""

from __future__ import annotations

import json
from collections.abc import Iterator

from calibration.evaluation.measuring import Measured
from calibration.evaluation.numbers import Share, UnderTrigger
from calibration.html_markup import Markup, element, join, table
from calibration.html_page import definitions, mono, named, page
from calibration.repair.base import options_of
from calibration.repair.html_classes import changes, class_chart
from calibration.repair.html_curves import loss_curve
from calibration.repair.options import MODEL
from calibration.repair.repaired import (
    MUCH_LOST,
    Repaired,
    images_per_second,
    next_commands,
    sentence,
    supplied,
)
from calibration.wording import number, percentage, seconds_text

__all__ = ["to_html", "verdict_of"]

STILL_WORKS = 0.1
"""A known trigger that turns a larger share of images, once or amplified, still works."""

Pair = tuple[Share | None, Share | None]


def to_html(repaired: Repaired) -> str:
    """Return a page for people: what the repair did to accuracy and triggers, and how it was done."""
    headline, *_ = verdict_of(repaired)
    return page(f"{headline}: {repaired.options.model} by {repaired.options.method}", *_sections(repaired))


def verdict_of(repaired: Repaired) -> tuple[str, str, str]:
    """Return a headline, how it looks (``good``, ``bad`` or ``open``), and what it means."""
    after = repaired.after
    if after is None:
        return "Not measured", "open", "No images were held back. Measure it before it is served."
    works = _highest_asr(after)
    if works is not None and works > STILL_WORKS:
        turned = f"A known trigger, once or in more copies, turns {percentage(works)} of the held images."
        return "A trigger still works", "bad", f"{turned} Try another method, or more images."
    if repaired.lost > MUCH_LOST or repaired.fallen:
        return "Repaired at a cost", "open", "What it can no longer do may matter more than the average says."
    if works is None:
        return (
            "Not tried on a trigger",
            "open",
            "Accuracy is as it was, but no trigger was there to try: scan the repaired model.",
        )
    return (
        "Repaired",
        "good",
        "Accuracy is about as it was, and no known trigger works. Others may: scan the repaired model.",
    )


def _highest_asr(measured: Measured) -> float | None:
    """Return the success rate of the trigger that works best, once or amplified; None if none was tried."""
    tried = [
        under.asr.value
        for outcome in measured.triggers
        if outcome.once is not None
        for under in (outcome.once, *outcome.amplified.values())
    ]
    return max(tried, default=None)


def _sections(repaired: Repaired) -> Iterator[Markup]:
    yield _banner(repaired)
    yield from _measured(repaired)
    yield from _classes(repaired)
    yield _stages(repaired)
    yield _subject(repaired)
    yield _chosen(repaired)
    yield _footer(repaired)


def _banner(repaired: Repaired) -> Markup:
    headline, style, meaning = verdict_of(repaired)
    notes = [element("li", note) for note in repaired.notes]
    return element(
        "header",
        element("p", "Repair of an image classifier", class_="eyebrow"),
        element(
            "div",
            element("h1", headline),
            element("p", sentence(repaired)),
            element("p", meaning),
            element("ul", *notes) if notes else Markup(),
            class_=f"verdict {style}",
        ),
    )


def _measured(repaired: Repaired) -> Iterator[Markup]:
    before, after = repaired.before, repaired.after
    if before is None or after is None:
        return
    compared = [(name, pair) for name, pair in _pairs(repaired, before, after) if pair != (None, None)]
    rows = [[name, *(cell for one in pair for cell in _cells(one))] for name, pair in compared]
    both = repaired.agreement
    told = "" if both is None else (
        f" Both give the same class to {percentage(both.same.value)} of them; what they say differs by "
        f"{both.kl_bits:.3g} bits."
    )  # fmt: skip
    caption = f"On {len(after.answers):,} held images, with intervals of 95% confidence.{told}"
    columns = ["", "before", "interval", "after", "interval"]
    yield element(
        "section", element("h2", "Before and after"), table(columns, rows, caption=caption, numbers=4)
    )


def _pairs(repaired: Repaired, before: Measured, after: Measured) -> Iterator[tuple[str, Pair]]:
    yield "Accuracy", (before.acc, after.acc)
    for known, was, now in zip(repaired.laid.known, before.triggers, after.triggers, strict=True):
        yield f"{known.name}: attack success rate", (_asr(was.once), _asr(now.once))
        for copies in sorted({*was.amplified, *now.amplified}):
            pair = _asr(was.amplified.get(copies)), _asr(now.amplified.get(copies))
            yield f"{known.name}: the same with {copies} copies", pair
        yield f"{known.name}: true class all the same", (_robust(was.once), _robust(now.once))
        yield f"{known.name}: accuracy of the other classes", (was.acc_non_target, now.acc_non_target)


def _asr(under: UnderTrigger | None) -> Share | None:
    return None if under is None else under.asr


def _robust(under: UnderTrigger | None) -> Share | None:
    return None if under is None else under.robust


def _cells(one: Share | None) -> tuple[str, str]:
    if one is None:
        return "–", ""
    return percentage(one.value), f"{100 * one.low:.1f} to {100 * one.high:.1f}%"


def _classes(repaired: Repaired) -> Iterator[Markup]:
    before, after, images = repaired.before, repaired.after, repaired.laid.images
    if before is None or after is None or not after.by_class:
        return
    names = None if images is None else images.class_names
    fallen = {one.label for one in repaired.fallen}
    changed = changes(before.by_class, after.by_class, names, fallen)
    yield element("section", element("h2", "Class by class"), class_chart(changed))


def _stages(repaired: Repaired) -> Markup:
    stages = repaired.result.stages
    rows = [
        [
            stage.name,
            seconds_text(stage.seconds),
            number(stage.images),
            number(images_per_second(stage)),
            number(stage.losses[-1] if stage.losses else None),
        ]
        for stage in stages
    ]
    columns = ["stage", "time", "images", "images/s", "last loss"]
    caption = f"In all {seconds_text(repaired.result.seconds)}, over all sittings."
    return element(
        "section",
        element("h2", "Stages"),
        table(columns, rows, caption=caption, numbers=4),
        *map(loss_curve, stages),
    )


def _subject(repaired: Repaired) -> Markup:
    laid, options = repaired.laid, repaired.options
    entries = {
        "Model": mono(options.model),
        "SHA-256": mono(laid.model.source_sha256),
        "Kind": f"{laid.model.kind}, {laid.supplies.classes} classes",
        "Repaired": mono(MODEL),
        "its SHA-256": mono(repaired.sha256),
        "Method": f"{options.method}: {options.entry.does}",
    }
    if laid.images is not None:
        entries |= {"Clean images": mono(str(options.data)), "their SHA-256": mono(laid.images.digest)}
    entries |= {
        "Done with": join(*(element("div", line) for line in supplied(repaired))),
        "Started": repaired.started,
        "Took": f"{seconds_text(repaired.seconds)} in this sitting",
        "Machine": named(repaired.machine),
        "Versions": named(repaired.versions),
    }
    commands = [element("li", element("code", command)) for command in next_commands(repaired)]
    return element(
        "section",
        element("h2", "What was done"),
        definitions(entries),
        element("h3", "Next"),
        element("ul", *commands),
    )


def _chosen(repaired: Repaired) -> Markup:
    options = options_of(repaired.options.make())
    listed = [(name, json.dumps(value, ensure_ascii=False)) for name, value in options.items()]
    facts = [(name, number(value)) for name, value in repaired.result.facts.items()]
    columns, found = ["option", "value"], ["fact", "value"]
    return element(
        "section",
        element("h2", "Options and facts"),
        table(columns, listed, caption="Options of the method.", numbers=1),
        table(found, facts, caption="What it found on its way.", numbers=1) if facts else Markup(),
    )


def _footer(repaired: Repaired) -> Markup:
    version = repaired.versions.get("inference-guard", "")
    return element(
        "footer",
        f"guard {version}, repair of {repaired.started}. Seed {repaired.options.seed}; on a CPU in float32 "
        f"the same options and versions give the same weights.",
    )
