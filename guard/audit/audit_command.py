"""``guard audit verify``, and what other packages add to ``guard audit``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

__all__ = ["ACTIONS_GROUP", "Action", "Audit"]

ACTIONS_GROUP: Final = "guard.audit"
"""Entry-point group of what else there is to audit."""

_EXIT_BROKEN: Final = 3
_EXPOSED: Final = (
    "warning: --key-file {} can be read or written by everybody on this machine, any of whom may have made "
    "up lines that hold; `chmod o-rw` it, and have the log go on in a new file with a new key"
)


@runtime_checkable
class Action(Protocol):
    """Something that ``guard audit`` does."""

    name: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code."""
        ...


class Audit:
    """``guard audit``.

    Args:
        more: What it does besides ``verify``.
    """

    name = "audit"
    help = "hold the guard to what it says: its audit log (verify), its certified false-rejection rate (frr)"

    def __init__(self, more: Sequence[Action] = ()) -> None:
        self._more = {action.name: action for action in more if action.name != "verify"}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what there is to audit, and the flags of each."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for action in self._more.values():
            action.add_arguments(actions.add_parser(action.name, help=action.help, description=action.help))
        verify = actions.add_parser(
            "verify",
            help="hold a log against its own chain; exit code 0 if it is what the guard wrote, 3 if it was "
            "tampered with",
        )
        verify.add_argument("path", type=Path, help="the file of the setting 'audit_log', or its folder")
        verify.add_argument(
            "--key-file", type=Path, help="the file of the setting 'audit_key_file', if the log has one"
        )
        verify.add_argument(
            "--from",
            dest="start",
            type=_hash,
            metavar="HASH",
            help="hash of the line before the first one, where older files were put elsewhere",
        )
        verify.add_argument(
            "--expect-last",
            type=_hash,
            metavar="HASH",
            help="hash of a line that must be there, such as the last when it was last verified; lines cut "
            "off at the end leave no other mark",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Audit and say what was found; return the exit code."""
        action = self._more.get(arguments.action)
        return _verify(arguments) if action is None else action.run(arguments)


def _verify(arguments: argparse.Namespace) -> int:
    from guard.audit.files import files_of
    from guard.audit.log import read_key
    from guard.audit.verify import verify_log
    from guard.audit.wording import lines_of
    from guard.secret_files import is_exposed

    key = read_key(arguments.key_file)
    if arguments.key_file is not None and is_exposed(arguments.key_file):
        print(_EXPOSED.format(arguments.key_file), file=sys.stderr)
    while True:
        files = files_of(arguments.path)
        found = verify_log(files, key=key, start=arguments.start, expect_last=arguments.expect_last)
        if not found.broken or files_of(arguments.path) == files:
            break  # else a guard put a file aside meanwhile, so that these were not all of the log
    for line in lines_of(found, len(files)):
        print(line)
    return _EXIT_BROKEN if found.broken else 0


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"expected a hash of 64 hex digits, got {text[:80]!r}")
    return text
