"""How every command of the workshop ends: its result, or one line that says what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from guard.errors import GuardError

__all__ = ["EXIT_ERROR", "REPAIR_PACKAGES", "run_or_explain"]

EXIT_ERROR = 2

REPAIR_PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch": "repair",
        "safetensors": "repair",
        "onnxscript": "repair",
        "scipy": "repair",
        "PIL": "repair",
        "tqdm": "repair",
        "matplotlib": "repair",
        "onnxruntime": "cpu",
    }
)
"""Packages that commands on trainable models need, and the extra that brings each."""


def run_or_explain(name: str, needed: Mapping[str, str], run: Callable[[], int]) -> int:
    """Run a command and return its exit code; an error becomes one line on stderr and exit code 2.

    Args:
        name: Name of the subcommand, such as ``calibrate``.
        needed: Packages that only the workshop needs, and the extra that brings each.
        run: The command; it imports what it needs when it is called.
    """
    try:
        return run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in needed:
            raise
        extra = needed[package]
        message = f"guard {name} needs the extra '{extra}': pip install 'inference-guard[{extra}]'"
    except GuardError as error:
        message = f"error: {error}"
    sys.stderr.write(message + "\n")
    return EXIT_ERROR
