"""How every command of the workshop ends: its result, or one line that says what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from guard.errors import GuardError

__all__ = ["EXIT_ERROR", "REPAIR_PACKAGES", "BrokenOffError", "going_on_from", "run_or_explain"]

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


class BrokenOffError(KeyboardInterrupt):
    """Ctrl-C, after something was done that the same command goes on from."""


@contextmanager
def going_on_from(folder: Path, *, kept: Callable[[], bool], anew: bool) -> Iterator[None]:
    """Let an interrupt say where the same command goes on, if there is anything to go on from.

    Args:
        folder: Where it is kept.
        kept: Tells whether anything of this command's own is there.
        anew: Whether the command was told to do again what is there.

    Raises:
        BrokenOffError: In place of the interrupt.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not kept():
            raise
        same = "the same command without --anew" if anew else "the same command"
        raise BrokenOffError(f"broken off; {same} goes on from {folder}") from interrupt


def run_or_explain(name: str, needed: Mapping[str, str], run: Callable[[], int]) -> int:
    """Run a command and return its exit code; an error becomes one line on stderr and exit code 2.

    An interrupt passes through; where the command goes on from is told before.

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
    except BrokenOffError as broken:
        sys.stderr.write(f"{broken}\n")
        raise
    sys.stderr.write(message + "\n")
    return EXIT_ERROR
