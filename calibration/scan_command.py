"""``guard scan``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Final

from calibration.command import REPAIR_PACKAGES, run_or_explain
from calibration.preprocessing_flags import add_preprocessing, preprocessing_of

__all__ = ["SCAN", "Scan"]


_NEEDED: Final = {**REPAIR_PACKAGES, "ray": "ray"}


class Scan:
    """``guard scan MODEL``."""

    name = "scan"
    help = "look for a backdoor in a model; exit code 0 clean, 3 backdoored, 4 inconclusive"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            help="a .onnx or .pt2 file, or package.module:factory with --weights and --input, which imports "
            "your module and RUNS ITS CODE; files are read without running anything, and pickles are refused",
        )
        parser.add_argument(
            "--data",
            type=Path,
            metavar="PATH",
            help="clean images that the model was not trained on: a folder (sub-folders are classes), an "
            ".npz with 'images' (and 'labels'), or an .npy; without it images are made from the model itself",
        )
        parser.add_argument("--labels", type=Path, metavar="L.npy", help="class indices of the images")
        parser.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="where reports and triggers go"
        )
        _add_looking(parser.add_argument_group("what to look for"))
        _add_training_set(parser.add_argument_group("a training set that may be poisoned"))
        _add_model(parser.add_argument_group("the model"))
        add_preprocessing(parser)
        _add_running(parser.add_argument_group("running"))

    def run(self, arguments: argparse.Namespace) -> int:
        """Scan and print what was found; return the exit code."""
        return run_or_explain(self.name, _NEEDED, lambda: _run(arguments))


SCAN: Final = Scan()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.preprocessing import Transform
    from calibration.scan.job import scan_model
    from calibration.scan.options import ScanOptions, read_settings
    from calibration.scan.reports import to_text

    same_name = (
        "model", "data", "labels", "out", "weights", "training_set", "training_labels", "alpha", "images",
        "made", "steps", "layout", "seed", "executor", "distribution", "address", "workers", "threads",
        "anew", "quiet",
    )  # fmt: skip
    options = ScanOptions(
        **{flag: getattr(arguments, flag) for flag in same_name},
        input_shape=tuple(arguments.input) if arguments.input else None,
        scanners=tuple(arguments.scanners) if arguments.scanners else None,
        targets=tuple(arguments.targets) if arguments.targets else None,
        settings=read_settings(arguments.config) if arguments.config else {},
        transform=Transform(**preprocessing_of(arguments)),
    )
    scanned = scan_model(options)
    columns = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    print(to_text(scanned.result, [str(place) for place in scanned.places], columns=columns), end="")
    return scanned.exit_code


def _add_looking(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scanners", nargs="+", metavar="NAME", help="(default: all that are usual and have what they need)"
    )
    group.add_argument(
        "--targets", type=int, nargs="+", metavar="CLASS", help="labels to look at (default: all)"
    )
    group.add_argument(
        "--steps", type=int, help="most steps of a search for each label (default: the scanner's own)"
    )
    group.add_argument("--config", type=Path, metavar="C.toml", help="options of scanners, a table for each")
    group.add_argument(
        "--distribution",
        action="store_true",
        help="learn for each flagged label the distribution of its small patches, for a repair to unlearn; "
        "minutes a label",
    )
    group.add_argument(
        "--alpha",
        type=float,
        default=0.01,
        help="chance that the scanners that give one call a clean model backdoored, together "
        "(default %(default)s)",
    )
    group.add_argument(
        "--images",
        type=int,
        default=500,
        help="most clean images to search on; as many again judge what was found (default %(default)s)",
    )
    group.add_argument(
        "--made", type=int, default=100, help="as --images, where they are made (default %(default)s)"
    )


def _add_training_set(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--training-set", type=Path, metavar="PATH", help="images and labels, as --data")
    group.add_argument("--training-labels", type=Path, metavar="L.npy", help="class indices of the images")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", type=Path, metavar="W.safetensors", help="weights of a factory")
    group.add_argument(
        "--input", type=int, nargs=3, metavar=("C", "H", "W"), help="image that a factory's network takes"
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    group.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="where (default %(default)s)"
    )
    group.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: start one here)"
    )
    group.add_argument("--workers", type=int, help="of Ray (default: as many as fit)")
    group.add_argument(
        "--threads", type=int, help="of torch (default: one a core; one in each of Ray's workers)"
    )
    group.add_argument(
        "--anew", action="store_true", help="do again what an earlier scan into --out has done"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
