"""The zoo's commands.

::

    python -m benchmarks.zoo build --data FOLDER [--only NAME ...] [--epochs N] [--again]
    python -m benchmarks.zoo list
    python -m benchmarks.zoo verify
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.zoo.build import Places, build, is_of_plan
from benchmarks.zoo.render import render
from benchmarks.zoo.subjects import MODELS, RECORDS, built, found, load_subject, verify
from benchmarks.zoo.table import SUBJECTS, Plan

REPORT = RECORDS.with_suffix(".md")


def main() -> int:
    options = read_options()
    if options.command == "build":
        build_all(options)
    elif options.command == "list":
        print(render(RECORDS), end="")
    else:
        return verify_all()
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make, list and verify the zoo of backdoored networks.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="make what is not there yet")
    building.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    building.add_argument("--only", nargs="+", choices=[*SUBJECTS], default=[*SUBJECTS], metavar="NAME")
    building.add_argument("--again", action="store_true", help="make also what is there already")
    building.add_argument("--epochs", type=int, help="in place of each recipe's")
    building.add_argument("--threads", type=int, default=torch.get_num_threads())
    building.add_argument("--work", type=Path, default=Path("build/zoo"), help="gets the checkpoints")
    commands.add_parser("list", help="show what there is")
    commands.add_parser("verify", help="compare every file with its record")
    return parser.parse_args()


def build_all(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    places = Places(options.data, MODELS, RECORDS, options.work)
    for name in options.only:
        plan = _plan(name, options.epochs)
        if not options.again and built(name) and is_of_plan(load_subject(name).record, plan):
            print(f"{name}: is there, as recorded and as planned")
            continue
        print(f"{name}: training", flush=True)
        record = build(plan, places)
        REPORT.write_text(render(RECORDS))
        print(f"{name}: acc {record['acc']:.4f}  asr {record.get('asr', float('nan')):.4f}", flush=True)


def _plan(name: str, epochs: int | None) -> Plan:
    plan = SUBJECTS[name]
    return plan if epochs is None else replace(plan, recipe=replace(plan.recipe, epochs=epochs))


def verify_all() -> int:
    wrong = {name: verify(name) for name in found()}
    for name, complaint in wrong.items():
        print(f"{name}: {complaint or 'as recorded'}")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
