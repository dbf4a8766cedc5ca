"""An audit of the false-rejection rate, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from calibration.audit.bounds import Rejections
from calibration.audit.job import ClassAudit, FrrAudit, TierAudit
from calibration.report import machine, package_versions
from calibration.wording import printable
from guard.artifact.detector import value_text

__all__ = ["lines_of", "to_json", "to_record"]

_CLASSES_SHOWN = 10


def lines_of(audit: FrrAudit) -> Iterator[str]:
    """Yield what a person reads."""
    artifact, profile = audit.artifact, audit.artifact.profile
    decided = audit.tiers[0].found.of
    yield (
        f"audited {printable(profile.model_name)}, version {artifact.version}, on {decided} of "
        f"{len(audit.fresh.images)} images in {audit.seconds:.1f} s ({audit.device})"
    )
    facts = [
        ("artifact", f"SHA-256 {artifact.digest}"),
        ("check", f"{profile.check.detector}, {profile.check.blend}, N = {profile.check.n_overlays}"),
        (
            "mean passes",
            f"{audit.mean_passes:.2f} (at calibration {profile.calibration.mean_passes_clean:.2f})",
        ),
    ]
    if audit.accuracy is not None:
        before = profile.calibration.accuracy
        compared = "" if before is None else f" (at calibration {before:.2%})"
        facts.append(("accuracy", f"{audit.accuracy:.2%}{compared}"))
    yield from (f"  {name:<12}{text}" for name, text in facts)
    yield ""
    yield from _table(_tier_head(audit), [_tier_row(tier) for tier in audit.tiers])
    for tier in audit.tiers:
        yield from _class_lines(tier, profile.output.labels)
    yield ""
    yield from (f"note: {printable(note)}" for note in _notes(audit))


def to_json(audit: FrrAudit) -> str:
    """Return the report for programs."""
    return json.dumps(to_record(audit), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_record(audit: FrrAudit) -> dict[str, Any]:
    """Return the report as plain values."""
    artifact, fresh = audit.artifact, audit.fresh
    return {
        "format": 1,
        "artifact": {
            "sha256": artifact.digest,
            "version": artifact.version,
            "model": artifact.profile.model_name,
            "model_sha256": artifact.profile.model_sha256,
            "check": artifact.profile.check.model_dump(mode="json"),
        },
        "data": {
            "name": audit.options.data.name,
            "sha256": fresh.images.digest,
            "images": len(fresh.images),
            "outside_the_calibrated_range": int((~fresh.checkable).sum()),
            "not_finite": audit.failed,
            "repeats": fresh.repeats,
            "calibration_images_recognisable": fresh.kept,
        },
        "confidence": audit.options.confidence,
        "refuted": audit.refuted,
        "tiers": [_tier_record(tier) for tier in audit.tiers],
        "mean_passes": audit.mean_passes,
        "mean_passes_at_calibration": artifact.profile.calibration.mean_passes_clean,
        "accuracy": audit.accuracy,
        "accuracy_at_calibration": artifact.profile.calibration.accuracy,
        "notes": list(_notes(audit)),
        "started": audit.started,
        "seconds": round(audit.seconds, 3),
        "device": audit.device,
        "machine": machine(),
        "versions": package_versions(),
    }


def _tier_record(tier: TierAudit) -> dict[str, Any]:
    return {
        "tier": tier.tier.value,
        "boundary": tier.boundary.model_dump(mode="json"),
        "rate": tier.rate,
        "standing": tier.standing,
        **_found_record(tier.found),
        "images_to_confirm": tier.needed,
        "classes": [
            {"class": each.label, **_found_record(each.found), "stands_out": each.stands_out}
            for each in tier.classes
        ],
        "images_of_other_classes": tier.others,
    }


def _found_record(found: Rejections) -> dict[str, Any]:
    return {
        "rejected": found.rejected,
        "of": found.of,
        "share": found.rate,
        "lower": found.lower,
        "upper": found.upper,
    }


def _tier_head(audit: FrrAudit) -> tuple[str, ...]:
    sure = f"{100 * audit.options.confidence:g}%"
    heads = ("tier", "boundary", "certified", "rejected", "share", f"lower ({sure})", f"upper ({sure})")
    return (*heads, "the rate is", "images to confirm")


def _tier_row(tier: TierAudit) -> tuple[str, ...]:
    return (
        tier.tier.value,
        value_text(tier.boundary),
        f"{tier.rate:.3%}",
        *_cells(tier.found),
        tier.standing,
        "none would do" if tier.needed is None else f"{tier.needed:,}",
    )


def _cells(found: Rejections) -> tuple[str, ...]:
    return f"{found.rejected} of {found.of}", f"{found.rate:.3%}", f"{found.lower:.3%}", f"{found.upper:.3%}"


def _class_lines(tier: TierAudit, names: Sequence[str] | None) -> Iterator[str]:
    if not tier.classes:
        return
    yield ""
    shown = tier.classes[:_CLASSES_SHOWN]
    more = (
        f", the {len(shown)} most rejected of {len(tier.classes)}" if len(shown) < len(tier.classes) else ""
    )
    yield f"  {tier.tier.value}, by predicted class{more}:"
    head = ("class", "rejected", "share", "lower", "upper", "")
    yield from _table(head, [_class_row(each, names) for each in shown])
    if tier.others:
        yield f"    {tier.others} images are of classes with too few to tell"


def _class_row(audit: ClassAudit, names: Sequence[str] | None) -> tuple[str, ...]:
    name = str(audit.label) if names is None else f"{audit.label} {printable(names[audit.label])}"
    return (name, *_cells(audit.found), "more than chance" if audit.stands_out else "")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _notes(audit: FrrAudit) -> Iterator[str]:
    fresh = audit.fresh
    outside = int((~fresh.checkable).sum())
    yield from fresh.images.notes
    yield (
        f"none of these is among the {fresh.kept} images of the calibration that the artifact keeps, and "
        f"they are not its whole set; whether others of it are here cannot be told, as it keeps no more"
    )
    if outside:
        yield (
            f"{outside} images hold values outside the calibrated range and were not counted; the guard "
            f"refuses such inputs besides, unless told otherwise"
        )
    if audit.failed:
        yield f"{audit.failed} images are answered with NaN or infinite scores and were not counted"
    if fresh.repeats:
        yield f"{fresh.repeats} images are exact copies of others; the bounds count them as independent draws"
    if audit.tiers[0].boundary.certified_frr is None:
        yield "the calibration certified no rate (--threshold normal); the one that it aimed at is audited"
    if any(each.stands_out for tier in audit.tiers for each in tier.classes):
        yield "what is certified is the rate of all inputs together, not that of each class"
