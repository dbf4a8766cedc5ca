"""``guard heal``: its flags, and nothing heavier than the guard's own dependencies to declare them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any, Final

from calibration.command import REPAIR_PACKAGES, going_on_from, run_or_explain
from calibration.preprocessing_flags import add_preprocessing, preprocessing_of
from guard.detection.superimpose import BLEND_RULES

__all__ = ["HEAL", "Heal"]

_LIMITS: Final = {
    "max_accuracy_drop": "accuracy that may be lost on labelled images that nothing was fitted to (0.05)",
    "min_agreement": "share of clean images given the class that the original gave them (0.8)",
    "max_inverted_asr": "success of the triggers that the scan inverted, or that are known (0.1)",
    "max_amplified_asr": "success of four and nine copies of those that are patches (0.15)",
    "max_distribution_asr": "success of patches from a learned distribution (0.15)",
    "max_anomaly_index": "of any label in a scan of the repaired model (3)",
    "min_rescan_p_value": "chance that a clean model shows what that scan shows (0.01)",
    "max_suspects_kept": "share of the suspects that still get the label the original gave them (0.2)",
}


class Heal:
    """``guard heal MODEL``."""

    name = "heal"
    help = (
        "scan, repair, judge, calibrate and publish the next version of a model; exit code 0 published, 5 no "
        "repair passed the gates, or what the scan of a model without a backdoor ends with: 0 clean, 4 "
        "inconclusive"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags; those that are not given are left to the file or the artifact."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            nargs="?",
            help="an artifact, REPOSITORY/MODEL for its highest version or REPOSITORY/MODEL/VERSION, whose "
            "check and preprocessing the next version keeps; or an .onnx file",
        )
        parser.add_argument(
            "--data",
            type=Path,
            metavar="PATH",
            help="clean images that the model was not trained on, a few thousand: a folder (sub-folders are "
            "classes), an .npz with 'images' (and 'labels'), or an .npy; parted into those to repair with, "
            "to judge by and to calibrate with",
        )
        parser.add_argument("--labels", type=Path, metavar="L.npy", help="class indices of the images")
        parser.add_argument(
            "--publish",
            type=Path,
            metavar="REPO/NAME",
            help="gets the next version (default: the artifact's own)",
        )
        parser.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="for the steps and reports; the same command goes on from there",
        )
        parser.add_argument(
            "--config",
            type=Path,
            metavar="C.toml",
            help="[heal] with these options, [gates], [scan.SCANNER], [repair.METHOD]; flags win over it",
        )
        _add_backdoor(parser.add_argument_group("the backdoor"))
        _add_repair(parser.add_argument_group("the repair"))
        _add_gates(
            parser.add_argument_group("the gates, shares from 0 to 1; one that fails forbids publishing")
        )
        _add_check(parser.add_argument_group("the check of the next version (default: the artifact's)"))
        add_preprocessing(parser)
        _add_running(parser.add_argument_group("running"))

    def run(self, arguments: argparse.Namespace) -> int:
        """Heal and print what was done; return the exit code."""
        return run_or_explain(self.name, REPAIR_PACKAGES, lambda: _run(arguments))


HEAL: Final = Heal()


def _run(arguments: argparse.Namespace) -> int:
    from calibration.heal.job import STEPS, heal
    from calibration.heal.options import heal_options
    from calibration.heal.report import to_text

    options = heal_options(_given(arguments), arguments.config)
    steps = options.out / STEPS
    with going_on_from(options.out, kept=steps.is_dir, anew=options.anew):
        healed = heal(options)
    columns = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    print(to_text(healed, columns), end="")
    return healed.exit_code


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given, by the names of the options."""
    values = vars(arguments) | preprocessing_of(arguments)
    gates = {name: values[name] for name in _LIMITS if values[name] is not None}
    left = {*_LIMITS, "config", "command"}
    given = {name: value for name, value in values.items() if name not in left and value is not None}
    return {**given, "gates": gates}


def _add_backdoor(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--suspects",
        type=Path,
        metavar="PATH",
        help="quarantined inputs, an .npz with 'images' in the model's own layout and type (and 'labels'), "
        "or a folder of such: with them a model is repaired whatever the scan says, and judged by them",
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
        "--scanners",
        nargs="+",
        metavar="NAME",
        help="to look with, one after the other until one finds something (default: neural_cleanse "
        "wave_inversion pair_scan warp_inversion)",
    )
    group.add_argument("--images", type=int, help="most clean images a scan searches on (default 500)")
    group.add_argument(
        "--distribution",
        action="store_const",
        const=True,
        help="learn for each flagged label the distribution of its small patches; minutes a label",
    )
    group.add_argument(
        "--even-if-clean", action="store_const", const=True, help="go on where the scan found nothing"
    )


def _add_repair(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--method",
        metavar="NAME[,NAME]",
        help="repairs to try, in this order; auto: by cost, those only whose needs are met (default auto)",
    )
    group.add_argument(
        "--try-all",
        action="store_const",
        const=True,
        help="try all of them and take the best that passes (default: the first that passes)",
    )


def _add_gates(group: argparse._ArgumentGroup) -> None:
    for name, words in _LIMITS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=words)
    group.add_argument(
        "--require",
        action="append",
        metavar="GATE",
        dest="required",
        help="a gate, such as max_suspects_kept, that must have been measured; may be given again (one that "
        "could not be is reported, and does not forbid publishing otherwise)",
    )
    group.add_argument(
        "--no-rescan", action="store_const", const=False, dest="rescan", help="do not scan the repaired model"
    )
    group.add_argument(
        "--test-data", type=Path, metavar="PATH", help="images to judge by, in place of a part of --data"
    )
    group.add_argument("--test-labels", type=Path, metavar="L.npy", help="class indices of its images")
    group.add_argument(
        "--judge-share", type=float, metavar="SHARE", help="of --data, images to judge by (default 0.2)"
    )


def _add_check(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--overlays", type=int, metavar="N", help="overlays (32 for a bare model)")
    group.add_argument("--blend", choices=sorted(BLEND_RULES), help="how they are superimposed (add)")
    group.add_argument("--frr", type=float, help="false-rejection rate (0.01)")
    group.add_argument("--confidence", type=float, help="of its guarantee (0.95)")
    group.add_argument(
        "--calibrate-share",
        type=float,
        metavar="SHARE",
        help="of --data, images to calibrate with; more if these are too few (default 0.25)",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, help="of all but the overlays, which are secret (default 0)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help="(default auto)")
    group.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    group.add_argument("--anew", action="store_const", const=True, help="do again what was done before")
    group.add_argument("--quiet", action="store_const", const=True, help="say nothing of how far it is")
