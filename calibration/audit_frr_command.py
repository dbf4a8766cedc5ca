"""``guard audit frr``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from calibration.command import run_or_explain

__all__ = ["AUDIT_FRR", "EXIT_REFUTED", "AuditFrr"]

EXIT_REFUTED: Final = 3

_NEEDED: Final[Mapping[str, str]] = MappingProxyType(
    {"scipy": "calibrate", "PIL": "calibrate", "tqdm": "calibrate", "onnxruntime": "cpu"}
)
"""Packages that only the workshop needs, and the extra that brings each."""


class AuditFrr:
    """``guard audit frr ARTIFACT``, which ``guard audit`` finds in the entry-point group ``guard.audit``."""

    name = "frr"
    help = (
        "hold the certified false-rejection rate against fresh clean images; exit code 0 if it is confirmed "
        "or not refuted, 3 if it is provably exceeded"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="<repository>/<model>/<version>")
        parser.add_argument(
            "--data",
            type=Path,
            required=True,
            metavar="PATH",
            help="clean images that took no part in training or calibration, stored as those were: a folder "
            "(sub-folders are classes), an .npz with 'images' (and 'labels'), or an .npy",
        )
        parser.add_argument("--labels", type=Path, metavar="L.npy", help="class indices of the images")
        parser.add_argument(
            "--confidence", type=float, default=0.95, help="of each bound (default %(default)s)"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
        parser.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default auto)"
        )
        parser.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
        parser.add_argument("--quiet", action="store_true", help="no progress bar")

    def run(self, arguments: argparse.Namespace) -> int:
        """Audit and print what was found; return the exit code."""
        return run_or_explain(f"audit {self.name}", _NEEDED, lambda: _run(arguments))


AUDIT_FRR: Final = AuditFrr()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.audit.job import audit_frr
    from calibration.audit.options import FrrOptions
    from calibration.audit.report import lines_of, to_json

    same_name = ("artifact", "data", "labels", "confidence", "json", "device", "threads", "quiet")
    options = FrrOptions(**{flag: getattr(arguments, flag) for flag in same_name})
    audit = audit_frr(options)
    for line in lines_of(audit):
        print(line)
    if options.json is not None:
        options.json.write_text(to_json(audit), encoding="utf-8")
        print(f"report: {options.json}")
    return EXIT_REFUTED if audit.refuted else 0
