"""``guard repair``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Final

from calibration.command import REPAIR_PACKAGES, run_or_explain
from calibration.preprocessing_flags import add_preprocessing, preprocessing_of

__all__ = ["REPAIR", "RepairCommand"]


class RepairCommand:
    """``guard repair MODEL``."""

    name = "repair"
    help = "take a backdoor out of a model, with clean images, and write it as the model that it was"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            nargs="?",
            help="a .onnx or .pt2 file, or package.module:factory with --weights and --input, which imports "
            "your module and RUNS ITS CODE; files are read without running anything, and pickles are refused",
        )
        parser.add_argument(
            "--data",
            type=Path,
            metavar="PATH",
            help="clean images, as the model is used on: a folder (sub-folders are classes), an .npz with "
            "'images' (and 'labels'), or an .npy; a few thousand are usual",
        )
        parser.add_argument("--labels", type=Path, metavar="L.npy", help="class indices of the images")
        parser.add_argument("--out", type=Path, metavar="DIR", help="where model.onnx and the reports go")
        _add_method(parser.add_argument_group("the method"))
        _add_backdoor(parser.add_argument_group("what is known of the backdoor"))
        _add_images(parser.add_argument_group("the images"))
        _add_model(parser.add_argument_group("the model"))
        add_preprocessing(parser)
        _add_running(parser.add_argument_group("running"))

    def run(self, arguments: argparse.Namespace) -> int:
        """Repair and print what was done; return the exit code."""
        return run_or_explain(self.name, REPAIR_PACKAGES, lambda: _run(arguments))


REPAIR: Final = RepairCommand()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.errors import OptionError
    from calibration.preprocessing import Transform
    from calibration.repair.explain import explain_method, list_methods
    from calibration.repair.job import repair_model
    from calibration.repair.options import RepairOptions
    from calibration.repair.report import to_text
    from calibration.repair.settings import options_in_file, options_in_words, require_known
    from calibration.repair.table import DEFAULT_METHOD

    columns = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    if arguments.list or arguments.explain is not None:
        print(list_methods(columns) if arguments.list else explain_method(arguments.explain, columns), end="")
        return 0
    if arguments.model is None or arguments.out is None:
        lacking = "MODEL" if arguments.model is None else "--out DIR"
        raise OptionError(f"{lacking} is missing: give guard repair MODEL --data CLEAN --out DIR, or --list")
    method = arguments.method or DEFAULT_METHOD
    require_known(method)
    settings = options_in_file(arguments.config, method) if arguments.config else {}
    same_name = (
        "model", "out", "data", "labels", "scan", "training_set", "training_labels", "held", "flip",
        "padding", "weights", "layout", "seed", "threads", "device", "anew", "quiet",
    )  # fmt: skip
    options = RepairOptions(
        **{flag: getattr(arguments, flag) for flag in same_name},
        method=method,
        settings=settings | options_in_words(arguments.set or (), method),
        triggers=tuple(arguments.triggers or ()),
        input_shape=tuple(arguments.input) if arguments.input else None,
        transform=Transform(**preprocessing_of(arguments)),
    )
    repaired, places = repair_model(options)
    print(to_text(repaired, places, columns=columns), end="")
    return 0


def _add_method(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--method", metavar="NAME", help="which repair (--list names all, and the default)")
    group.add_argument("--list", action="store_true", help="print every repair, what it does and needs")
    group.add_argument("--explain", metavar="NAME", help="print every option of a repair")
    group.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="an option of the repair, such as epochs=10; may be given again",
    )
    group.add_argument("--config", type=Path, metavar="C.toml", help="options of repairs, a table for each")


def _add_backdoor(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scan", type=Path, metavar="DIR", help="--out of a guard scan: triggers that it flagged"
    )
    group.add_argument(
        "--trigger",
        type=Path,
        action="append",
        metavar="DIR",
        dest="triggers",
        help="folder of a known trigger (trigger.json); may be given again",
    )
    group.add_argument(
        "--training-set", type=Path, metavar="PATH", help="that may be poisoned: images and labels, as --data"
    )
    group.add_argument("--training-labels", type=Path, metavar="L.npy", help="class indices of its images")


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--held",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of each class's images, to judge by and not to learn from (default %(default)s)",
    )
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror training images (default: unless the model loses over 5 points on mirrored ones)",
    )
    group.add_argument(
        "--padding",
        type=int,
        metavar="PIXELS",
        help="that training images are shifted by, at most (default: an eighth of the side)",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", type=Path, metavar="W.safetensors", help="weights of a factory")
    group.add_argument(
        "--input", type=int, nargs=3, metavar=("C", "H", "W"), help="image that a factory's network takes"
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default auto)")
    group.add_argument("--threads", type=int, help="of torch (default: one a core)")
    group.add_argument(
        "--anew", action="store_true", help="do again what this repair did before it was broken off"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
