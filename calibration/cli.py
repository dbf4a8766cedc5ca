"""``guard calibrate``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, get_args

from calibration.canary_kinds import DEFAULT_KINDS, KINDS
from calibration.command import run_or_explain
from calibration.preprocessing_flags import add_preprocessing, preprocessing_of
from guard.artifact.precision import Precision
from guard.detection.capabilities.opinion import OPINIONS
from guard.detection.superimpose import BLEND_RULES

__all__ = ["CALIBRATE", "Calibrate"]


_NEEDED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "scipy": "calibrate",
        "matplotlib": "calibrate",
        "PIL": "calibrate",
        "tqdm": "calibrate",
        "onnxruntime": "cpu",
    }
)
"""Packages that only calibration needs, and the extra that brings each."""


class Calibrate:
    """``guard calibrate``."""

    name = "calibrate"
    help = "calibrate a model on clean images and write an artifact that `guard serve` can serve"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument("--model", type=Path, required=True, metavar="M.onnx", help="the classifier")
        parser.add_argument(
            "--data",
            type=Path,
            required=True,
            metavar="PATH",
            help="clean images the model was not trained on: a folder (sub-folders are classes), an .npz "
            "with 'images' (and 'labels'), or an .npy",
        )
        parser.add_argument("--labels", type=Path, metavar="L.npy", help="class indices of the images")
        parser.add_argument(
            "--class-names", type=Path, metavar="N.txt", help="name of each class, one a line, for clients"
        )
        parser.add_argument("--out", type=Path, required=True, metavar="REPO/NAME", help="where to write")
        parser.add_argument("--name", help="model name (default: the last part of --out)")
        check = parser.add_argument_group("the check")
        _add_blends(check)
        _add_detector(check)
        _add_rates(check)
        add_preprocessing(parser)
        _add_running(parser.add_argument_group("running"))

    def run(self, arguments: argparse.Namespace) -> int:
        """Calibrate and print what was found; return the exit code."""
        return run_or_explain(self.name, _NEEDED, lambda: _run(arguments))


CALIBRATE: Final = Calibrate()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.calibrate import calibrate
    from calibration.options import CalibrateOptions
    from calibration.preprocessing import Transform

    same_name = (
        "model", "data", "labels", "class_names", "out", "name", "overlays", "blend", "detector", "layers",
        "threshold", "frr", "block_frr", "confidence", "layout", "seed", "device", "threads",
        "precision", "quiet", "scan",
    )  # fmt: skip
    options = CalibrateOptions(
        **{flag: getattr(arguments, flag) for flag in same_name},
        canaries=_kinds(arguments.canaries),
        capabilities=_capabilities(arguments.capabilities),
        transform=Transform(**preprocessing_of(arguments)),
    )
    for line in calibrate(options).lines():
        print(line)
    return 0


def _kinds(asked: list[str] | None) -> tuple[str, ...]:
    return () if asked is None else tuple(asked or DEFAULT_KINDS)


def _capabilities(asked: list[str]) -> tuple[str, ...]:
    """Return their names as they came, which the options judge; alone, ``auto`` is all and ``off`` none."""
    if asked == ["auto"]:
        return OPINIONS
    return () if asked == ["off"] else tuple(asked)


def _add_blends(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--overlays",
        type=int,
        default=32,
        metavar="N",
        help="overlays (default %(default)s); more find more, and cost clean inputs hardly more",
    )
    group.add_argument("--seed", type=int, help="of the overlay draw (default: a fresh, secret one)")
    group.add_argument(
        "--blend",
        choices=(*BLEND_RULES, "auto"),
        default="add",
        help="blend rule; auto takes the one that canaries are found best with (default %(default)s)",
    )
    group.add_argument(
        "--canaries",
        nargs="*",
        metavar="KIND",
        help="plant backdoors in throw-away copies of the model to choose overlays and statistics by, and "
        "the blend rule with --blend auto; a minute or two for the usual kinds, and none need be named: "
        f"{', '.join(KINDS)} (needs the extra 'repair')",
    )
    group.add_argument(
        "--scan",
        type=Path,
        metavar="DIR",
        help="choose by the triggers that `guard scan --out DIR` found in this model; nothing is planted",
    )


def _add_detector(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--detector",
        choices=("auto", "fused", "strip"),
        default="auto",
        help="fused sees more of the same passes and needs more clean images; auto takes it where there are "
        "enough (default %(default)s)",
    )
    group.add_argument(
        "--layers",
        choices=("auto", "off"),
        default="auto",
        help="whether the fused detector looks at activations too, which costs no pass; off for a model that "
        "a model server runs (default %(default)s)",
    )
    group.add_argument(
        "--capabilities",
        nargs="+",
        default=["auto"],
        metavar="auto|off|NAME",
        help="second opinions to try and keep, asked beside the check and never in it, about what was found "
        f"suspicious: auto for all of {', '.join(OPINIONS)} (default auto)",
    )


def _add_rates(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--threshold",
        choices=("conformal", "normal"),
        default="conformal",
        help="conformal guarantees the rate; normal is the paper's percentile (default %(default)s)",
    )
    group.add_argument(
        "--frr", type=float, default=0.01, help="most clean inputs that may be flagged (default %(default)s)"
    )
    group.add_argument(
        "--block-frr",
        type=float,
        metavar="RATE",
        help="most clean inputs that `enforce` may refuse, below --frr; between the two it flags",
    )
    group.add_argument(
        "--confidence", type=float, default=0.95, help="of the guarantee (default %(default)s)"
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default auto)")
    group.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="exact",
        help="what the model computes in, here and where it serves (default %(default)s)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
