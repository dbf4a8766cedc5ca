"""``guard inspect``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from guard.errors import GuardError

__all__ = ["INSPECT", "Inspect"]

EXIT_ERROR: Final = 2

_NEEDED: Final[Mapping[str, str]] = MappingProxyType(
    {"torch": "repair", "safetensors": "repair", "onnxscript": "repair", "onnxruntime": "cpu"}
)
"""Packages that only the workshop needs, and the extra that brings each."""


class Inspect:
    """``guard inspect MODEL``."""

    name = "inspect"
    help = "show a model's layers, stages, batch norm and signature, and whether it can be trained"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            help="a .onnx or .pt2 file, or package.module:factory with --weights and --input, which imports "
            "your module from the current directory or the environment and RUNS ITS CODE; files are read "
            "without running anything, and pickles (.pt, .pth, .bin) are refused",
        )
        parser.add_argument("--weights", type=Path, metavar="W.safetensors", help="weights of a factory")
        parser.add_argument(
            "--input", type=int, nargs=3, metavar=("C", "H", "W"), help="image that a factory's network takes"
        )
        parser.add_argument("--layout", choices=("NCHW", "NHWC"), help="where the model's shape is unclear")
        parser.add_argument(
            "--size", type=int, nargs=2, metavar=("H", "W"), help="where the model leaves it open"
        )
        parser.add_argument("--json", action="store_true", help="as JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Look and print; return the exit code."""
        try:
            return _run(arguments)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _NEEDED:
                raise
            extra = _NEEDED[package]
            print(
                f"guard inspect needs the extra '{extra}': pip install 'inference-guard[{extra}]'",
                file=sys.stderr,
            )
        except GuardError as error:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR


INSPECT: Final = Inspect()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.inspection import inspect_model
    from calibration.trainable import load_trainable

    model = load_trainable(
        arguments.model,
        weights=arguments.weights,
        input_shape=tuple(arguments.input) if arguments.input else None,
        layout=arguments.layout,
        size=tuple(arguments.size) if arguments.size else None,
    )
    found = inspect_model(model, arguments.model, profile=Path(arguments.model).parent / "profile.json")
    print(found.to_json() if arguments.json else "\n".join(found.lines()))
    return 0
