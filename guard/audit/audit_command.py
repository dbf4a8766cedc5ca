"""``guard audit verify``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

__all__ = ["Audit"]

_EXIT_BROKEN: Final = 3
_EXPOSED: Final = (
    "warning: --key-file {} can be read or written by everybody on this machine, any of whom may have made "
    "up lines that hold; `chmod o-rw` it, and have the log go on in a new file with a new key"
)


class Audit:
    """``guard audit verify PATH``."""

    name = "audit"
    help = "verify an audit log; exit code 0 if it is what the guard wrote, 3 if it was tampered with"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the one thing that is done with a log, and its flags."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="verify")
        verify = actions.add_parser("verify", help="hold a log against its own chain")
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
        """Verify and say what was found."""
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
