"""``guard inspect``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from calibration.command import run_or_explain

__all__ = ["INSPECT", "Inspect"]


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
        return run_or_explain(self.name, _NEEDED, lambda: _run(arguments))


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
