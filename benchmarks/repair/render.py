"""The repairs' tables, from their records alone.

::

    python -m benchmarks.repair.render

writes ``benchmarks/results/repair.md``.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.repair.floor import CLEAN, read_floor
from benchmarks.repair.methods import ATTACKS, IMAGES, OTHERS, STRONG, WEAK
from benchmarks.repair.published import ARGD_AVERAGES, ARGD_BY_ATTACK, ARGD_BY_SHARE, Pair
from benchmarks.repair.records import NONE, Records, cell, percent, read_records, spread, table
from benchmarks.repair.special import amplification, distillation, patching, pruning

__all__ = ["RESULTS", "render"]

RESULTS = Path(__file__).parent.parent / "results"
SHARES = (500, 2500, 5000, 10000)
OF_PLAIN = "fine_tuning"

HEAD = """# Repairs of the zoo

Backdoored networks (see [zoo.md](zoo.md)) repaired by every method, each run by
`python -m benchmarks.bench_repair --data FOLDER`; this page by `python -m benchmarks.repair.render`. One run
is a victim, a method, a number of clean images and a seed; a record of each lies in `repair/`.

The clean images are random ones of the victim's own training images, with true labels; a tenth of them is
held back and nothing is fitted to it. 2,500 are the papers' "5 %" of CIFAR-10. Options are each method's
defaults, unless its name has a second part. Rates are in percent, on all 10,000 images of the holdout (3,930
of GTSRB), which no victim and no repair has seen: **ASR / ACC\\***, where ACC* leaves the target class out,
as ARGD and NAD count; ACC counts all classes; RA is the accuracy on stamped images. Averages are over victims
that all have a record, ± the standard deviation over seeds where there are several; "–" is where one is
missing. Seconds are processor time of one core of a machine that
others worked on too, a scan that a trigger came from apart; images/s are those that went through the network
being changed, forwards and back, a second.
"""

TITLES = {
    "weak": (
        WEAK,
        "Weak victims, as those of the papers",
        "Trained from scratch to the accuracy of the papers' victims. Published: ARGD, table 1, the same "
        "kind of network and number of images, but not the same victims.",
    ),
    "strong": (
        STRONG,
        "Strong victims",
        "Better trained than the papers' victims, so that there is more accuracy to lose.",
    ),
    "others": (
        OTHERS,
        "Other networks and data",
        "A ResNet, a VGG without batch norm, GTSRB's 43 classes, and an attack that expects pruning.",
    ),
}


def main() -> None:
    """Write the page."""
    (RESULTS / "repair.md").write_text(render())


def render() -> str:
    """Return the page as Markdown."""
    records = read_records(RESULTS / "repair")
    parts = (
        HEAD,
        *(by_victim(records, group) for group in TITLES),
        by_share(records),
        pruning(records),
        patching(records),
        amplification(records),
        distillation(records),
        missing(records),
    )
    return "\n".join(part for part in parts if part)


def by_victim(records: Records, group: str) -> str:
    """Return ASR / ACC* of each method on each victim, averages, and what it costs."""
    victims, title, about = TITLES[group]
    published = ["published average"] if group == "weak" else []
    head = ["method", *victims, "average", "ACC", "RA", *published, "seconds", "images/s"]
    blanks = [NONE, NONE]
    rows = [_before(records, victims, bool(published)) + blanks]
    if group != "others":
        rows.append(_floor(victims, len(head)))
    for method in ordered(records):
        cells = [pair(records, victim, method) for victim in victims]
        if set(cells) == {NONE}:
            continue
        means = [records.over(victims, method, IMAGES, "after", name) for name in ("acc", "robust_acc")]
        row = [method, *cells, average(records, victims, method, IMAGES), *map(percent, means)]
        if published:
            row.append(_published(method))
        rows.append([*row, *_cost(records, victims, method)])
    if group == "weak":
        by_attack = [ARGD_BY_ATTACK[attack] for attack in ATTACKS]
        for place, name in enumerate(("*before*, published", "*argd*, published")):
            told = [_of(pairs[place]) for pairs in by_attack]
            known = ARGD_AVERAGES["argd" if place else "none"]
            rows.append([name, *told, NONE, NONE, NONE, _of(known), NONE, NONE])
    return "\n".join([f"## {title}", "", *([about, ""] if about else []), table(head, rows)])


def by_share(records: Records) -> str:
    """Return averages over the weak victims by the number of clean images."""
    head = ["method", *(f"{images:,} ({images / 500:g} %)" for images in SHARES)]
    rows = []
    for method in ordered(records):
        if not any(records.of(victim, method, images) for victim in WEAK for images in SHARES if images):
            continue
        cells = [average(records, WEAK, method, images) for images in SHARES]
        enough = [cell for images, cell in zip(SHARES, cells, strict=True) if images != IMAGES]
        if set(enough) != {NONE} and len(set(cells)) > 1:
            rows.append([method, *cells])
    for method, pairs in ARGD_BY_SHARE.items():
        rows.append([f"*{method}*, published", *(_of(pairs[images]) for images in SHARES)])
    about = "Averages of ASR / ACC* over the six weak victims. Published: ARGD, table 2."
    return "\n".join(["## By the number of clean images", "", about, "", table(head, rows)])


def missing(records: Records) -> str:
    """Return what was begun and came to nothing."""
    lines = [
        f"- {one['victim']}, {one['method']}{'-' if one['variant'] else ''}{one['variant']}, "
        f"{one['images']} images, seed {one['seed']}: {one['missing']}"
        for one in records.missing()
    ]
    return "\n".join(["## Runs that came to nothing", "", *lines, ""]) if lines else ""


def ordered(records: Records) -> list[str]:
    """Return all methods, plain fine-tuning first."""
    return sorted(records.methods(), key=lambda name: (name != OF_PLAIN, name))


def pair(records: Records, victim: str, method: str) -> str:
    """Return ASR / ACC* of a method on a victim."""
    found = [records.mean(victim, method, IMAGES, "after", name) for name in ("asr", "acc_non_target")]
    return cell(*found)


def average(records: Records, victims: tuple[str, ...], method: str, images: int) -> str:
    """Return the averages of ASR and ACC*."""
    shares = [
        spread(records.by_seed(victims, method, images, "after", name)) for name in ("asr", "acc_non_target")
    ]
    return NONE if NONE in shares else " / ".join(shares)


def _before(records: Records, victims: tuple[str, ...], published: bool) -> list[str]:
    shares = {
        name: [records.before(victim, name) for victim in victims]
        for name in ("asr", "acc_non_target", "acc", "robust_acc")
    }
    cells = [cell(*pair) for pair in zip(shares["asr"], shares["acc_non_target"], strict=True)]
    means = {name: _mean(values) for name, values in shares.items()}
    row = ["*before*", *cells, cell(means["asr"], means["acc_non_target"])]
    row += [percent(means["acc"]), percent(means["robust_acc"])]
    return [*row, _of(ARGD_AVERAGES["none"])] if published else row


def _floor(victims: tuple[str, ...], width: int) -> list[str]:
    """Return what networks without a backdoor do under each trigger."""
    found = [read_floor(victim) for victim in victims]
    cells = [cell(one.get("asr"), one.get("acc_non_target")) for one in found]
    means = {
        key: _mean([one.get(key) for one in found]) for key in ("asr", "acc_non_target", "acc", "robust_acc")
    }
    row = [f"*{len(CLEAN)} clean networks*", *cells, cell(means["asr"], means["acc_non_target"])]
    row += [percent(means["acc"]), percent(means["robust_acc"])]
    return row + [NONE] * (width - len(row))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _published(method: str) -> str:
    known = ARGD_AVERAGES.get("mcr" if method == "mcr-t3" else method if method != "mcr" else "")
    return _of(known) if known else NONE


def _of(pair: Pair) -> str:
    return f"{pair.asr:.2f} / {pair.acc:.2f}"


def _cost(records: Records, victims: tuple[str, ...], method: str) -> list[str]:
    there = [victim for victim in victims if records.of(victim, method, IMAGES)]
    seconds = records.over(there, method, IMAGES, "processor_seconds")
    speed = records.over(there, method, IMAGES, "images_per_second")
    return [NONE if seconds is None else f"{seconds:.1f}", NONE if speed is None else f"{speed:,.0f}"]


if __name__ == "__main__":
    main()
