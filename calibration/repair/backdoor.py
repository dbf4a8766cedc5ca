"""What is known of the backdoor, held against the model that is to be rid of it."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.attacks.base import Images
from calibration.errors import DataError, OptionError
from calibration.evaluation.measuring import Known, check_targets, stamped
from calibration.findings import Findings
from calibration.repair.options import RepairOptions
from calibration.scan.distribution_file import load_distribution
from calibration.scan.patch_generator import PatchDistribution
from calibration.trainable import TrainableModel

__all__ = ["check_scan", "check_triggers", "load_distributions"]


def check_scan(
    findings: Findings | None, known: tuple[Known, ...], model: TrainableModel, options: RepairOptions
) -> None:
    """Refuse a scan of another model, or one that lacks what the method needs.

    Raises:
        OptionError: If it is of another model.
        DataError: If it holds no trigger, or no distribution, and the method cannot do without.
    """
    if findings is None:
        return
    if findings.model_sha256 != model.source_sha256:
        raise OptionError(
            f"--scan {findings.folder} is of another model (SHA-256 {findings.model_sha256[:12]}..., "
            f"{options.model} has {model.source_sha256[:12]}...); scan this one, or name its triggers with "
            f"--trigger"
        )
    if "trigger" in options.entry.needs and not known:
        raise DataError(
            f"--scan {findings.folder} flagged no label and so holds no trigger, and {options.method} needs "
            f"one; give one with --trigger, or choose another repair (--list)"
        )
    if "distribution" in options.entry.needs and not findings.distributions:
        raise DataError(
            f"--scan {findings.folder} holds no distribution of triggers, and {options.method} needs one; "
            f"run guard scan --distribution, which learns one for each flagged label"
        )


def check_triggers(known: tuple[Known, ...], image: Images, classes: int) -> None:
    """Refuse triggers that are not this model's, before anything is learned.

    Raises:
        DataError: If one is for images of another shape, or leads to a class that there is not.
    """
    for each in known:
        stamped(each, image)
    check_targets(known, classes)


def load_distributions(
    findings: Findings | None, classes: int, shape: tuple[int, int, int]
) -> Mapping[int, PatchDistribution]:
    """Return the distributions that a scan learned, by label.

    Raises:
        DataError: If one cannot be read, or its patches are not for this model.
    """
    learned = {} if findings is None else findings.distributions
    loaded = {label: load_distribution(folder) for label, folder in learned.items()}
    for label, distribution in loaded.items():
        fits = (
            label == distribution.target < classes
            and distribution.channels == shape[0]
            and distribution.size <= min(shape[1:])
        )
        if not fits:
            raise DataError(
                f"{learned[label]}: patches of {distribution.size} pixels and {distribution.channels} "
                f"channel(s) for label {label} do not fit a model of {classes} classes and images of "
                f"{' x '.join(map(str, shape))}; scan this model again"
            )
    return loaded
