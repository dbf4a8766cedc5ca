"""The scans' tables, from their records.

::

python -m benchmarks.scan.render > benchmarks/results/scan.md
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"

HEAD = """# Scans of the zoo

Each subject (see [zoo.md](zoo.md)) scanned with 500 clean images to search on and 1,000 held ones, none of
which it was trained on, at the scanners' defaults. Made by `python -m benchmarks.scan.zoo --data FOLDER`,
ART's rows by `benchmarks.scan.art_peer`, the curve by `benchmarks.scan.curve`. Seconds are of one core
(processor time).

Read with two reservations. Thresholds, priors and the pair scan's bound on the shift were set while looking
at subjects of this very zoo, clean ones among them; no other networks have confirmed them. And not every
scanner was run on every subject (a dash says so). That a lone pair leaves the pair scan open became a rule
after a clean GTSRB network had raised an alarm; the other pair scans ran before it and read the same under
it.
"""
SCANNERS = ("neural_cleanse", "wave_inversion", "warp_inversion", "pair_scan")


def main() -> None:
    """Print all tables."""
    print(render(), end="")


def render() -> str:
    """Return all tables of the committed records as Markdown."""
    paths = sorted((RESULTS / "scan" / "zoo").glob("*.json"))
    records = [json.loads(path.read_text()) for path in paths if "-goal" not in path.stem]
    parts = (HEAD, rates(records), verdicts(records), details(records), peer(records), curve())
    return "\n".join(part for part in parts if part)


def verdicts(records: list[dict[str, Any]]) -> str:
    """Return a row for each subject: what each scanner said, over its seeds."""
    by_subject: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_subject[record["subject"]][record["scanner"]].append(record)
    lines = [
        "## Verdicts",
        "",
        f"| subject | true target | {' | '.join(SCANNERS)} |",
        f"|---|---|{'---|' * len(SCANNERS)}",
    ]
    order = sorted(by_subject, key=lambda name: (_any(by_subject[name])["attack"] is not None, name))
    for name in order:
        cells = [_said(by_subject[name].get(scanner, [])) for scanner in SCANNERS]
        lines.append(f"| {name} | {_targets(_any(by_subject[name]))} | {' | '.join(cells)} |")
    lines += ["", "B backdoored (labels or pairs flagged), c clean, i inconclusive; one letter a seed."]
    return "\n".join(lines) + "\n"


def rates(records: list[dict[str, Any]]) -> str:
    """Return how many backdoored subjects were detected and how many clean scans raised an alarm."""
    by_scan: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_scan[record["subject"], record["seed"]].append(record)
    bad = {key: scans for key, scans in by_scan.items() if scans[0]["attack"] is not None}
    good = {key: scans for key, scans in by_scan.items() if scans[0]["attack"] is None}
    found = [key for key, scans in bad.items() if any(one["verdict"] == "backdoored" for one in scans)]
    right = [key for key in found if any(_hits(one) for one in bad[key])]
    alarms = [key for key, scans in good.items() if any(one["verdict"] == "backdoored" for one in scans)]
    single = sum(len(scans) for scans in good.values())
    return (
        "## Rates\n\n"
        f"- Backdoored subjects detected by at least one scanner: {len(found)} of {len(bad)}; "
        f"with a true target label among those flagged: {len(right)}.\n"
        f"- Missed: {', '.join(sorted(name for name, _ in set(bad) - set(found))) or 'none'}.\n"
        f"- False alarms: {len(alarms)} of {len(good)} clean subjects and seeds ({single} scans by one "
        f"scanner).\n"
    )


def details(records: list[dict[str, Any]]) -> str:
    """Return a row for each scan by patches, waves and warps: sizes, p-values, seconds."""
    lines = [
        "## Sizes",
        "",
        "| subject | scanner | seed | likeliest | ratio to usual | p | anomaly index | ASR | IoU | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(
        records, key=lambda one: (one["scanner"], one["attack"] is not None, one["subject"], one["seed"])
    ):
        first = record["findings"][0]
        if "ratio" not in first:
            continue
        iou = "" if record["iou"] is None else f"{record['iou']:.2f}"
        what = f"| {record['subject']} | {record['scanner']} | {record['seed']} | {first['name']} "
        sizes = f"| {first['ratio']:.2f} | {first['p_value']:.2g} | {first['anomaly_index']:.1f} "
        lines.append(f"{what}{sizes}| {first['asr']:.0%} | {iou} | {record['cpu_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def peer(records: list[dict[str, Any]]) -> str:
    """Return ART's Neural Cleanse beside ours, on the same models."""
    lines = ["## Beside ART's Neural Cleanse", ""]
    for path in sorted((RESULTS / "scan_art").glob("*.json")):
        art = json.loads(path.read_text())
        stricter = RESULTS / "scan" / "zoo" / f"{path.stem}-neural_cleanse-0-goal0.99.json"
        ours = [
            one
            for one in records
            if one["subject"] == path.stem and one["scanner"] == "neural_cleanse" and one["seed"] == 0
        ]
        ours += [json.loads(stricter.read_text())] if stricter.exists() else []
        for one in ours:
            lines += _beside(path.stem, art, one)
    return "\n".join(lines) + "\n"


def curve() -> str:
    """Return the cost against the number of labels."""
    path = RESULTS / "scan" / "curve.json"
    if not path.exists():
        return ""
    rows = json.loads(path.read_text())["rows"]
    first = rows[0]
    lines = [
        "## Cost against the number of labels",
        "",
        "A network's head is widened with made-up labels, whose triggers scatter far more than real ones do.",
        "",
        "| labels | seconds | times the first | linear would be | images | likeliest | ratio | flagged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['labels']} | {row['cpu_seconds']:.0f} | {row['cpu_seconds'] / first['cpu_seconds']:.1f} | "
        f"{row['labels'] / first['labels']:.1f} | {row['images']:,.0f} | "
        f"{row['likeliest']} | {row['ratio']:.2f} | {', '.join(row['flagged']) or 'none'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _beside(name: str, art: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    sizes = {finding["target"]: finding for finding in ours["findings"]}
    lines = [
        f"**{name}**: ART with its learning rate restored (stock ART moves no mask), {art['steps']} of its "
        f"1,000 steps a label, goal 99 %; ours with a goal of {ours['options']['goal']:.0%}.",
        "",
        "| label | ART's L1 | our L1 | ART's held ASR | our held ASR | ART's seconds | our seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    share = ours["cpu_seconds"] / max(len(sizes), 1)
    for row in art["labels"]:
        mine = sizes[row["label"]]
        lines.append(
            f"| {row['label']} | {row['l1']:.1f} | {mine['size']:.1f} | {row['asr_held']:.0%} | "
            f"{mine['asr']:.0%} | {row['cpu_seconds']:.0f} | {share:.1f} |"
        )
    total = sum(row["cpu_seconds"] for row in art["labels"])
    return [*lines, "", f"All labels: {total:.0f} s against {ours['cpu_seconds']:.0f} s.", ""]


def _any(scans: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return next(iter(scans.values()))[0]


def _targets(record: dict[str, Any]) -> str:
    targets = record["targets"]
    return "none" if not targets else "all" if len(targets) > 3 else ", ".join(map(str, targets))


def _said(records: list[dict[str, Any]]) -> str:
    letters = {"backdoored": "B", "clean": "c", "inconclusive": "i"}
    said = []
    for record in sorted(records, key=lambda one: one["seed"]):
        flagged = record["flagged"]
        shown = f" ({', '.join(flagged[:3])}{', …' if len(flagged) > 3 else ''})" if flagged else ""
        said.append(letters[record["verdict"]] + shown)
    return " ".join(said) or "–"


def _hits(record: dict[str, Any]) -> bool:
    return any(int(name.split("→")[-1]) in record["targets"] for name in record["flagged"])


if __name__ == "__main__":
    main()
