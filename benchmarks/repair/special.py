"""Tables of one question each: pruning, patching by triggers, amplified triggers, distillation."""

from __future__ import annotations

from benchmarks.repair.methods import IMAGES, STRONG, WEAK
from benchmarks.repair.published import AMPLIFIED, DISTILLED, FINE_PRUNED, PATCHED
from benchmarks.repair.records import NONE, Records, cell, percent, table

__all__ = ["amplification", "distillation", "patching", "pruning"]

PATCHING = ("unlearning-reversed", "unlearning-original", "unlearning-clean")
WITH_PATCH = ("badnets", "trojan")


def pruning(records: Records) -> str:
    """Return fine-pruning beside fine-tuning, on a plain victim and one made to survive pruning."""
    head = ["victim", "before", "fine-tuned", "fine-pruned", "channels out"]
    rows = []
    for victim in ("badnets", "pruning_aware"):
        out, of = (
            records.mean(victim, "fine_pruning", IMAGES, "facts", name)
            for name in ("pruned_channels", "channels")
        )
        rows.append(
            [
                victim,
                _before(records, victim),
                *(_after(records, victim, method) for method in ("fine_tuning", "fine_pruning")),
                NONE if out is None or of is None else f"{out:.0f} of {of:.0f}",
            ]
        )
    for attack, figures in FINE_PRUNED.items():
        for data, pairs in figures.items():
            told = [f"{pair.asr:g} / {pair.acc:g}" for pair in pairs]
            rows.append([f"*{data}*, {attack}, published", *told, NONE])
    about = "ASR / ACC of all classes. Published: Liu et al., RAID 2018."
    return "\n".join(["## Fine-pruning and a pruning-aware attack", "", about, "", table(head, rows)])


def patching(records: Records) -> str:
    """Return unlearning by reversed trigger, by the original one and by clean images alone."""
    head = ["victim", "before", "reversed trigger", "original trigger", "clean images", "scan"]
    rows = []
    for victim in (*WEAK, *STRONG, "gtsrb_badnets", "resnet_badnets"):
        cells = [_after(records, victim, method) for method in PATCHING]
        if set(cells) != {NONE}:
            rows.append([victim, _before(records, victim), *cells, _scan(records, victim)])
    for data, pairs in PATCHED.items():
        rows.append([f"*{data}*, published", *(f"{pair.asr:.2f} / {pair.acc:.2f}" for pair in pairs), NONE])
    about = (
        "ASR / ACC of all classes after one epoch of unlearning; the scan is ours, Neural Cleanse on 500 of "
        "the clean images: its verdict, the label whose trigger was unlearned, seconds. Published: Wang et "
        "al., IEEE S&P 2019, table V."
    )
    return "\n".join(["## Patching by unlearning a trigger", "", about, "", table(head, rows)])


def amplification(records: Records) -> str:
    """Return the ASR of one, four and nine copies of a patch after each repair."""
    victims = (*WITH_PATCH, *(f"weak_{name}" for name in WITH_PATCH))
    head = ["method", *(f"{victim} x1 / x4 / x9" for victim in victims), "published mean"]
    rows = []
    for method in records.methods():
        cells = [_grids(records, victim, method) for victim in victims]
        if set(cells) == {NONE}:
            continue
        known = AMPLIFIED.get(method)
        rows.append([method, *cells, NONE if known is None else " / ".join(f"{rate:.2f}" for rate in known)])
    about = (
        "ASR under one, four and nine copies of the patch. Published: DHBE, table 6, means over nine attacks "
        "on a ResNet-18, among images that are right without the trigger, which ours are not picked by. DHBE "
        "is given no image at all, the others 2,500."
    )
    return "\n".join(["## Amplified triggers", "", about, "", table(head, rows)])


def distillation(records: Records) -> str:
    """Return distillation into a fresh network by the share of clean images."""
    found = sorted(
        {
            (one["images"], one["victim"], one["variant"])
            for one in records.records
            if one["method"] == "distillation"
        }
    )
    rows = []
    for images, victim, variant in found:
        name = f"distillation-{variant}" if variant else "distillation"
        shares = [records.mean(victim, name, images, "after", what) for what in ("asr", "acc", "robust_acc")]
        seconds = records.mean(victim, name, images, "processor_seconds")
        time = NONE if seconds is None else f"{seconds:.0f}"
        rows.append([victim, name, f"{images:,}", _before(records, victim), *map(percent, shares), time])
    head = ["victim", "method", "clean images", "before", "ASR", "ACC", "RA", "seconds"]
    about = (
        f"Without the second step, which needs the training set. GTSRB's images are 6 % and 20 % of those "
        f"that the victim learned from. Published, Yoshida and Fujino, AISec 2020: {DISTILLED}."
    )
    return "\n".join(["## Distillation into a fresh network", "", about, "", table(head, rows)])


def _before(records: Records, victim: str) -> str:
    return cell(records.before(victim, "asr"), records.before(victim, "acc"))


def _after(records: Records, victim: str, method: str) -> str:
    return cell(*(records.mean(victim, method, IMAGES, "after", name) for name in ("asr", "acc")))


def _grids(records: Records, victim: str, method: str) -> str:
    rates = [
        records.mean(victim, method, IMAGES, "after", *path)
        for path in (("asr",), ("asr_amplified", "4"), ("asr_amplified", "9"))
    ]
    return NONE if rates[0] is None else " / ".join(map(percent, rates))


def _scan(records: Records, victim: str) -> str:
    scans = [one["scan"] for one in records.of(victim, "unlearning-reversed", IMAGES)]
    told = [
        f"{scan['verdict']}, {', '.join(scan['folders'])}, {scan['processor_seconds']:.0f} s"
        for scan in scans
    ]
    return "; ".join(told) or NONE
