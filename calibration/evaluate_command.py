"""``guard evaluate``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from calibration.command import run_or_explain
from calibration.preprocessing_flags import add_preprocessing, preprocessing_of

__all__ = ["EVALUATE", "Evaluate"]


_NEEDED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch": "repair",
        "safetensors": "repair",
        "onnxscript": "repair",
        "scipy": "calibrate",
        "PIL": "calibrate",
        "tqdm": "calibrate",
        "onnxruntime": "cpu",
    }
)
"""Packages that only the workshop needs, and the extra that brings each."""


class Evaluate:
    """``guard evaluate MODEL``."""

    name = "evaluate"
    help = "measure a model on test images and under known triggers, beside the model it was made from"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            help="a .onnx file, run as it is served; or a .pt2 file, or package.module:factory with "
            "--weights and --input, which imports your module and RUNS ITS CODE; pickles are refused",
        )
        parser.add_argument(
            "--data",
            type=Path,
            required=True,
            metavar="PATH",
            help="test images that neither the model nor the repair has seen: a folder (sub-folders are "
            "classes), an .npz with 'images' (and 'labels'), or an .npy",
        )
        parser.add_argument("--labels", type=Path, metavar="L.npy", help="class indices of the images")
        parser.add_argument(
            "--original", metavar="MODEL", help="the model before the repair, to compare with"
        )
        parser.add_argument(
            "--trigger",
            type=Path,
            action="append",
            metavar="DIR",
            dest="triggers",
            help="folder of a known trigger (trigger.json); may be given again",
        )
        parser.add_argument(
            "--scan", type=Path, metavar="DIR", help="--out of a guard scan: the triggers that it flagged"
        )
        parser.add_argument("--out", type=Path, metavar="DIR", help="where evaluation.json and .md go")
        _add_models(parser.add_argument_group("the models"))
        add_preprocessing(parser)
        _add_running(parser.add_argument_group("running"))

    def run(self, arguments: argparse.Namespace) -> int:
        """Evaluate and print what was measured; return the exit code."""
        return run_or_explain(self.name, _NEEDED, lambda: _run(arguments))


EVALUATE: Final = Evaluate()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.evaluation.job import evaluate
    from calibration.evaluation.options import EvaluateOptions
    from calibration.evaluation.report import to_text, write
    from calibration.preprocessing import Transform

    same_name = (
        "model", "data", "labels", "original", "scan", "out", "weights", "original_weights", "layout",
        "confidence", "device", "threads", "quiet",
    )  # fmt: skip
    options = EvaluateOptions(
        **{flag: getattr(arguments, flag) for flag in same_name},
        triggers=tuple(arguments.triggers or ()),
        input_shape=tuple(arguments.input) if arguments.input else None,
        transform=Transform(**preprocessing_of(arguments)),
    )
    evaluation = evaluate(options)
    print(to_text(evaluation), end="")
    if options.out is not None:
        print()
        for place in write(evaluation, options.out):
            print(f"report: {place}")
    return 0


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", type=Path, metavar="W.safetensors", help="weights of a factory")
    group.add_argument(
        "--original-weights", type=Path, metavar="W.safetensors", help="weights of --original's factory"
    )
    group.add_argument(
        "--input", type=int, nargs=3, metavar=("C", "H", "W"), help="image that a factory's network takes"
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--confidence", type=float, default=0.95, help="of all intervals (default %(default)s)"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default auto)")
    group.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
