"""``guard quarantine list | show | export``: look at what was kept of suspicious inputs."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from calibration.command import run_or_explain
from calibration.wording import number, printable
from guard.detection.threshold import Verdict
from guard.errors import SettingsError
from guard.quarantine import Contents, ItemRecord, export_items, find_item, read_contents, read_image

__all__ = ["QUARANTINE", "Quarantine"]

_NEEDED: Final = {"PIL": "calibrate"}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ON_A_SHEET: Final = 200


class Quarantine:
    """``guard quarantine``."""

    name = "quarantine"
    help = "look at the rejected and flagged inputs that a guard has kept: list, show, export"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the three things that are done with a quarantine, and their flags."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        listing = actions.add_parser("list", help="what is there, the newest first")
        showing = actions.add_parser("show", help="all that is known of one item")
        exporting = actions.add_parser(
            "export", help="items of one model as an .npz, for guard heal --suspects"
        )
        for action in (listing, showing, exporting):
            action.add_argument("folder", type=Path, metavar="DIR", help="the setting 'quarantine_dir'")
        listing.add_argument("--model", metavar="NAME", help="only of this model")
        listing.add_argument("--json", action="store_true", help="one JSON object a line")
        showing.add_argument("id", metavar="ID", help="as listed")
        showing.add_argument("--png", type=Path, metavar="FILE", help="write the image there, too")
        exporting.add_argument("--model", metavar="NAME", required=True, help="whose items")
        exporting.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="where they go")
        exporting.add_argument("--sheet", type=Path, metavar="FILE.png", help="a contact sheet of them, too")
        exporting.add_argument("--limit", type=_count, metavar="N", help="only the N newest")
        for action in (listing, exporting):
            action.add_argument("--model-version", metavar="V", help="only what this version judged")
            action.add_argument(
                "--since",
                type=_moment,
                metavar="WHEN",
                help="a time (2026-01-31T09:00, UTC) or an age (90m, 2d)",
            )
            action.add_argument(
                "--verdict", choices=[Verdict.REJECT.value, Verdict.FLAG.value], help="only those"
            )

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code."""
        actions = {"list": _list, "show": _show, "export": _export}
        return run_or_explain(self.name, _NEEDED, lambda: actions[arguments.action](arguments))


QUARANTINE: Final = Quarantine()


def _list(arguments: argparse.Namespace) -> int:
    contents = _chosen(arguments)
    if arguments.json:
        for item in contents.items:
            print(json.dumps(item.model_dump(mode="json")))
        return 0
    if contents.items:
        _print_table(contents.items)
    print(f"items: {len(contents.items)}, inputs: {sum(item.count for item in contents.items)}")
    if contents.passed_over:
        print(
            f"files passed over, damaged or not the guard's: {len(contents.passed_over)}, such as "
            f"{printable(str(contents.passed_over[0]))}"
        )
    return 0


def _print_table(items: Sequence[ItemRecord]) -> None:
    heads = ("id", "model", "version", "verdict", "tier", "score", "p-value", "label", "inputs")
    rows = [heads, *(_row(item) for item in items)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(item: ItemRecord) -> tuple[str, ...]:
    label = str(item.label) if item.label >= 0 else "-"
    tier = item.tier.value if item.tier else "-"
    found = (tier, f"{item.score:.4f}", f"{item.p_value:.3g}", label, str(item.count))
    return (item.id, printable(item.model), printable(item.version), item.verdict.value, *found)


def _show(arguments: argparse.Namespace) -> int:
    item = find_item(arguments.folder, arguments.id)
    fields = item.model_dump(mode="json")
    for name in ("at", "last_at"):
        fields[name] = _utc(fields[name])
    width = max(map(len, fields))
    for name, value in fields.items():
        print(f"{name:{width}}  {printable(value) if isinstance(value, str) else json.dumps(value)}")
    if arguments.png:
        from calibration.contact_sheet import as_pixels, picture_png

        image = read_image(arguments.folder, item)
        arguments.png.write_bytes(
            picture_png(as_pixels(image, layout=item.layout, low=item.low, high=item.high))
        )
    return 0


def _export(arguments: argparse.Namespace) -> int:
    items = _chosen(arguments).items[: arguments.limit]
    if not items:
        raise SettingsError(
            f"{arguments.folder} holds nothing of model {arguments.model!r} that was asked for; "
            f"`guard quarantine list` shows what there is"
        )
    kept = export_items(arguments.folder, items, arguments.out)
    print(f"{len(kept)} of {len(items)} items written to {printable(str(arguments.out))}")
    if arguments.sheet:
        _write_sheet(arguments.folder, kept[:_ON_A_SHEET], arguments.sheet)
        shown = min(len(kept), _ON_A_SHEET)
        print(f"{shown} of them on the sheet {printable(str(arguments.sheet))}")
    return 0


def _write_sheet(folder: Path, items: Sequence[ItemRecord], path: Path) -> None:
    from calibration.contact_sheet import as_pixels, contact_sheet

    pictures = [
        as_pixels(read_image(folder, item), layout=item.layout, low=item.low, high=item.high)
        for item in items
    ]
    captions = [f"{number(item.score)} ->{item.label}" for item in items]
    path.write_bytes(contact_sheet(pictures, captions))


def _chosen(arguments: argparse.Namespace) -> Contents:
    verdict = Verdict(arguments.verdict) if arguments.verdict else None
    contents = read_contents(arguments.folder, model=arguments.model, since=arguments.since, verdict=verdict)
    version = arguments.model_version
    items = tuple(item for item in contents.items if version in {None, item.version})
    return Contents(items, contents.passed_over)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str) -> float:
    age = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if age:
        return time.time() - int(age[1]) * _SECONDS[age[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a time such as 2026-01-31T09:00 or an age such as 90m or 2d, got {text[:80]!r}"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text[:80]!r}")
    return int(text)
